"""Nodes of any retriever -> the best of them by MaxSim.

Knows nothing of how they were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # not in its __all__
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from pydantic import PrivateAttr

from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder, scorer, sees_images
from llama_index_colqwen.embedders.resolve import resolve_embedder
from llama_index_colqwen.errors import NoPageImageError, QueryError, check_count
from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, MultiVector
from llama_index_colqwen.nodes import caption, page_from_node
from llama_index_colqwen.pages import Page
from llama_index_colqwen.query import embed_query
from llama_index_colqwen.store.page_store import MilvusPageStore

__all__ = ["MaxSimRerank"]

_DISPATCHER = get_dispatcher(__name__)


class MaxSimRerank(BaseNodePostprocessor):
    """Rank the pages that any retriever found (BM25, a vector store, several fused) by late interaction.

    `MaxSimRerank(index.embedder, top_n=3, store=index.store)` in an engine's `node_postprocessors`. Vectors of pages
    that are in the store, by node id, are read from there, whatever the node has of the page; other nodes are embedded,
    in batches, which takes as long as indexing them. Hits are new objects: those given are left as they are.

    Attributes:
        top_n: How many are kept, best first; equal scores by node id.
        keep_retrieval_score: Whether the score that a hit came with is kept, as `retrieval_score` of its metadata.
    """

    top_n: int = 5
    keep_retrieval_score: bool = False

    _embedder: MultiVectorEmbedder = PrivateAttr()
    _store: MilvusPageStore | None = PrivateAttr()

    def __init__(
        self,
        embedder: str | MultiVectorEmbedder,
        top_n: int = 5,
        *,
        store: MilvusPageStore | None = None,
        keep_retrieval_score: bool = False,
    ) -> None:
        """Make one.

        Args:
            embedder: What embeds queries, and pages that are not in the store: as for `ColQwenIndex`.
            top_n: How many pages are kept.
            store: Where vectors of pages are, made by the same embedder.
            keep_retrieval_score: Whether the score before is kept in the metadata.

        Raises:
            InvalidOptionError: If `top_n` is no whole number above 0, or there is no such embedder.
            FingerprintMismatchError: If another embedder made the store's vectors.
        """
        super().__init__(  # type: ignore[call-arg]  # fields of this class, not of its base
            top_n=check_count("top_n", top_n), keep_retrieval_score=keep_retrieval_score
        )
        self._embedder, self._store = resolve_embedder(embedder), store
        if store is not None:
            store.open(self._embedder.fingerprint)

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex serialises this postprocessor under."""
        return "MaxSimRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise QueryError("Pages are ranked for a query, and none was given: give query_bundle or query_str.")
        model = self._embedder.fingerprint.model
        _DISPATCHER.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            ranked = self._ranked(nodes, query_bundle) if nodes else []
            event.on_end(payload={EventPayload.NODES: ranked})
        _DISPATCHER.event(ReRankEndEvent(nodes=ranked))
        return ranked

    def _ranked(self, hits: Sequence[NodeWithScore], query_bundle: QueryBundle) -> list[NodeWithScore]:
        query = embed_query(self._embedder, query_bundle, self.callback_manager)
        scores = scorer(self._embedder)(query, self._vectors([hit.node for hit in hits]))
        best = sorted(zip(hits, scores.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0].node.node_id))
        return [self._scored(hit, score) for hit, score in best[: self.top_n]]

    def _vectors(self, nodes: Sequence[BaseNode]) -> list[EncodedVectors | MultiVector]:
        """Return the multi-vector of each node."""
        ids = list(dict.fromkeys(node.node_id for node in nodes))
        known: dict[str, EncodedVectors | MultiVector] = {}
        if self._store is not None:
            known |= {found.page_id: found.encoded for found in self._store.vectors(ids)}
        unknown = {node.node_id: node for node in nodes if node.node_id not in known}
        if unknown:
            pages = [self._page(node) for node in unknown.values()]
            embedded = self._embedder.embed_pages(pages)
            known |= {name: np.asarray(vectors) for name, vectors in zip(unknown, embedded, strict=True)}
        return [known[node.node_id] for node in nodes]

    def _page(self, node: BaseNode) -> Page:
        """Return what is embedded of a node that is not in the store."""
        try:
            return page_from_node(node)
        except NoPageImageError:
            if not sees_images(self._embedder):
                return Page(node.node_id, "", caption(node), 1, node.get_content(MetadataMode.NONE))
            raise NoPageImageError(
                f"{caption(node)} ({node.node_id}) has no page image and is not in the store, so "
                f"{self._embedder.fingerprint.model} cannot rank it: give MaxSimRerank the store of the index that has "
                "the page, store=index.store."
            ) from None

    def _scored(self, hit: NodeWithScore, score: float) -> NodeWithScore:
        node = hit.node
        if self.keep_retrieval_score:
            node = node.model_copy(update={"metadata": {**node.metadata, "retrieval_score": hit.score}})
        return hit.model_copy(update={"node": node, "score": score})
