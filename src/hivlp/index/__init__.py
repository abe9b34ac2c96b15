"""A folder that holds items and their level vectors, and answers queries by a cascade over the levels."""

from hivlp.index.adding import AddReport, Failure
from hivlp.index.from_embeddings import EmbeddingsReport, index_embeddings
from hivlp.index.index import Index
from hivlp.index.repair import RepairReport
from hivlp.search.results import Duplicate, Hit, SearchResult
from hivlp.store.verify import Damage, VerifyReport

__all__ = [
    "AddReport",
    "Damage",
    "Duplicate",
    "EmbeddingsReport",
    "Failure",
    "Hit",
    "Index",
    "RepairReport",
    "SearchResult",
    "VerifyReport",
    "index_embeddings",
]
