"""LlamaIndex retriever: the items of an index as nodes with scores."""

from __future__ import annotations

from typing import Any

from hivlp.errors import MissingExtraError
from hivlp.index import Hit, Index

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode
except ImportError as error:
    raise MissingExtraError("a retriever for LlamaIndex", "llama-index") from error


class HivlpRetriever(BaseRetriever):  # type: ignore[misc]
    """Retriever over an index: ``HivlpRetriever(index, k=5).retrieve("a dog on a beach")``.

    Pictures come as image nodes, given vectors as text nodes. A node's text is the item's caption, its id the item's
    as text, its score the cosine at the finest level; its metadata are the item's, with ``path`` and ``rank``.
    """

    def __init__(self, index: Index, k: int = 10, **search_options: Any) -> None:
        """A retriever of ``k`` nodes.

        Args:
            index: that is searched, open.
            k: how many nodes.
            search_options: others of :meth:`hivlp.index.Index.search`.
        """
        self._index, self._options = index, {"k": k, **search_options}
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [self._node(hit) for hit in self._index.search(query_bundle.query_str, **self._options)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [self._node(hit) for hit in await self._index.asearch(query_bundle.query_str, **self._options)]

    def _node(self, hit: Hit) -> NodeWithScore:
        known = {**hit.metadata, "path": hit.path, "rank": hit.rank}
        told = {"id_": str(hit.id), "text": hit.caption or "", "metadata": known}
        node = ImageNode(**told, image_path=hit.path) if self._index.maps is None else TextNode(**told)
        return NodeWithScore(node=node, score=hit.scores[self._index.levels[-1].name])
