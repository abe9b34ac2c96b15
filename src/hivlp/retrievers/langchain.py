"""LangChain retriever: the items of an index as documents."""

from __future__ import annotations

from typing import Any

from hivlp.errors import MissingExtraError
from hivlp.index import Hit, Index

try:
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict, Field
except ImportError as error:
    raise MissingExtraError("a retriever for LangChain", "langchain") from error


class HivlpRetriever(BaseRetriever):  # type: ignore[misc]
    """Retriever over an index: ``HivlpRetriever(index=index, k=5).invoke("a dog on a beach")``.

    A document's text is the item's caption, or its path where it has none; its ``id`` is the item's, as text; its
    metadata are the item's, with ``path``, ``rank`` and ``scores`` by level.

    Attributes:
        index: that is searched, open.
        k: how many documents.
        search_options: others of :meth:`hivlp.index.Index.search`, such as ``{"where": "year >= 2010"}``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    index: Index
    k: int = 10
    search_options: dict[str, Any] = Field(default_factory=dict)

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return list(map(_document, self.index.search(query, **{"k": self.k, **self.search_options})))

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return list(map(_document, await self.index.asearch(query, **{"k": self.k, **self.search_options})))


def _document(hit: Hit) -> Document:
    known = {**hit.metadata, "path": hit.path, "rank": hit.rank, "scores": hit.scores}
    return Document(id=str(hit.id), page_content=hit.caption or hit.path, metadata=known)
