"""A folder that holds items and their level vectors, and answers queries by a cascade over the levels."""

from hivlp.index.adding import AddReport, Failure
from hivlp.index.from_embeddings import EmbeddingsReport, index_embeddings
from hivlp.index.index import Index
from hivlp.index.search import Hit, SearchResult

__all__ = [
    "AddReport",
    "EmbeddingsReport",
    "Failure",
    "Hit",
    "Index",
    "SearchResult",
    "index_embeddings",
]
