"""A folder that holds items and their level vectors, and answers queries by a cascade over the levels."""

from hivlp.index.adding import AddReport, Failure
from hivlp.index.finding import Found, find
from hivlp.index.from_embeddings import EmbeddingsReport, index_embeddings
from hivlp.index.index import Index
from hivlp.index.mixing import Mix
from hivlp.index.photo_filter import PhotoFilter
from hivlp.index.repair import RepairReport
from hivlp.index.watching import watch
from hivlp.search.results import Duplicate, Hit, SearchResult
from hivlp.store.verify import Damage, VerifyReport

__all__ = [
    "AddReport",
    "Damage",
    "Duplicate",
    "EmbeddingsReport",
    "Failure",
    "Found",
    "Hit",
    "Index",
    "Mix",
    "PhotoFilter",
    "RepairReport",
    "SearchResult",
    "VerifyReport",
    "find",
    "index_embeddings",
    "watch",
]
