"""Products that are measured, hivlp first, behind one interface; none imports its library before it is asked to."""

from hivlp.bench.products.rivals.base import Product
from hivlp.bench.products.rivals.chroma import Chroma
from hivlp.bench.products.rivals.faiss_list import FaissHnsw, FaissIvf
from hivlp.bench.products.rivals.lance_table import LanceDB
from hivlp.bench.products.rivals.ours import Ours
from hivlp.bench.products.rivals.qdrant_shard import QdrantEdge
from hivlp.bench.products.rivals.sqlite_vec_table import SqliteVec
from hivlp.bench.products.rivals.usearch_list import Usearch
from hivlp.bench.products.rivals.zvec_collection import Zvec, ZvecListed

# The fastest first: where there is no time for all, what is left must not look like the best.
PRODUCTS: tuple[type[Product], ...] = (
    Ours, Zvec, ZvecListed, FaissIvf, FaissHnsw, QdrantEdge, Usearch, SqliteVec, LanceDB, Chroma,
)  # fmt: skip

__all__ = ["PRODUCTS", "Product"]
