"""A folder that holds items and their level vectors, and answers queries by a cascade over the levels."""

from hivlp.index.adding import AddReport, Failure
from hivlp.index.index import Index
from hivlp.index.search import Duplicate, Hit, SearchResult

__all__ = ["AddReport", "Duplicate", "Failure", "Hit", "Index", "SearchResult"]
