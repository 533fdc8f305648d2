"""An index -> a LlamaIndex vector store, for what takes nothing else: ingestion pipelines and `VectorStoreIndex`.

Knows nothing of how pages are found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.vector_stores import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQueryMode
from pydantic import PrivateAttr

from llama_index_colqwen.embedders.protocol import recommended_candidate_vectors
from llama_index_colqwen.errors import InvalidOptionError, QueryError
from llama_index_colqwen.index import ColQwenIndex
from llama_index_colqwen.nodes import node_from_page
from llama_index_colqwen.rerank import MaxSimRerank
from llama_index_colqwen.retriever import Mode
from llama_index_colqwen.store.page_store import MilvusPageStore

__all__ = ["ColQwenVectorStore"]

_MODES: dict[VectorStoreQueryMode, Mode] = {
    VectorStoreQueryMode.DEFAULT: "visual",
    VectorStoreQueryMode.TEXT_SEARCH: "text",
    VectorStoreQueryMode.HYBRID: "hybrid",
}


class ColQwenVectorStore(BasePydanticVectorStore):
    """Lets an index be the vector store of LlamaIndex's own machinery.

    The index's embedder embeds pages and questions, as multi-vectors. What LlamaIndex asks an embedding model for on
    the way is not used, so give it one that costs nothing, `MockEmbedding(embed_dim=1)`:

        store = ColQwenVectorStore(index)
        IngestionPipeline(transformations=[MockEmbedding(embed_dim=1)], vector_store=store).run(documents=documents)
        VectorStoreIndex.from_vector_store(store, embed_model=MockEmbedding(embed_dim=1)).as_retriever(filters=...)

    Its `as_retriever(vector_store_query_mode="hybrid")` ranks by MaxSim and by words, "text_search" by words alone.

    (A pipeline hands its store only nodes that have an embedding.) Text splitters have no place among the
    transformations: pages are indexed whole. Where no such machinery is needed, use the index itself.

    Args:
        index: What is written to and asked.
    """

    stores_text: bool = True
    is_embedding_query: bool = False

    _index: ColQwenIndex = PrivateAttr()

    def __init__(self, index: ColQwenIndex) -> None:
        """See the class."""
        if not isinstance(index, ColQwenIndex):
            raise InvalidOptionError(f"index is a ColQwenIndex; got {type(index).__name__}.")
        super().__init__(stores_text=True, is_embedding_query=False)
        self._index = index

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex serialises this store under."""
        return "ColQwenVectorStore"

    @property
    def client(self) -> MilvusPageStore:
        """Where the pages are."""
        return self._index.store

    # ---- writing

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:  # noqa: ANN401  # LlamaIndex's
        """Embed and store pages, or replace those with their ids; unchanged ones are not embedded again.

        Raises:
            InvalidOptionError: If a node is a piece of a page, or none has a page image.
        """
        self._index.insert_nodes(nodes, show_progress=False)
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:  # noqa: ANN401
        """Delete a page by its id, or all pages of a document by the document's id."""
        self._index.delete_ref_doc(ref_doc_id)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Delete pages: those with these ids that filters keep, or all that either names."""
        if node_ids is None:
            self._index.store.delete(filters=filters)
        else:
            self._index.store.delete(page_ids=self._kept(node_ids, filters))

    def clear(self) -> None:
        """Delete all pages."""
        embedder = self._index.embedder
        self._index.store.clear()
        self._index.store.open(embedder.fingerprint, recommended_candidate_vectors(embedder))

    # ---- reading

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return the nodes of pages with these ids that filters keep; by default of all."""
        if node_ids is None:
            return list(self._index.nodes(filters))
        return [node_from_page(page) for page in self._index.store.get(self._kept(node_ids, filters))]

    def _kept(self, node_ids: Sequence[str], filters: MetadataFilters | None) -> list[str]:
        """Return those of the ids that filters keep."""
        if filters is None:
            return list(node_ids)
        kept = set(self._index.store.page_ids(filters))
        return [node_id for node_id in node_ids if node_id in kept]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:  # noqa: ANN401
        """Find the pages that answer `query.query_str`, best first, with their scores.

        The query's mode "default" ranks by MaxSim, "text_search" by BM25 over the pages' text, "hybrid" by both.

        Raises:
            QueryError: If there are no words to look for.
            InvalidOptionError: If the query has another mode; or one of the last two, and `node_ids` that are not all.
        """
        if not query.query_str:
            raise QueryError("The query has no words: pages are found by a question, not by an embedding.")
        mode = _MODES.get(query.mode)
        if mode is None:
            modes = ", ".join(known.value for known in _MODES)
            raise InvalidOptionError(f"Pages are found with one of the modes {modes}; got {query.mode.value!r}.")
        filters, top_k = query.filters, query.similarity_top_k
        if query.doc_ids:
            of_documents = MetadataFilter(key="document_id", value=query.doc_ids, operator=FilterOperator.IN)
            filters = MetadataFilters(filters=[*([filters] if filters else []), of_documents])
        wanted = set(query.node_ids or ())
        hits: Sequence[NodeWithScore]
        # A `VectorStoreIndex` that wrote pages names all that it wrote: only where others are there does that matter.
        if wanted and not wanted.issuperset(self._index.store.page_ids(filters)):
            if mode != "visual":
                raise InvalidOptionError(
                    f"Among chosen node_ids, pages are found with the mode default; got {query.mode.value!r}."
                )
            pages = [NodeWithScore(node=node) for node in self.get_nodes(list(wanted), filters)]
            rerank = MaxSimRerank(self._index.embedder, top_k, store=self._index.store)
            hits = rerank.postprocess_nodes(pages, query_str=query.query_str)
        else:
            hits = self._index.as_retriever(similarity_top_k=top_k, filters=filters, mode=mode).retrieve(
                query.query_str
            )
        return VectorStoreQueryResult(
            nodes=[hit.node for hit in hits],
            similarities=[hit.get_score() for hit in hits],
            ids=[hit.node_id for hit in hits],
        )

    # ---- the same, for the event loop

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:  # noqa: ANN401
        """Do what `add` does."""
        return await asyncio.to_thread(self.add, nodes)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:  # noqa: ANN401
        """Do what `delete` does."""
        await asyncio.to_thread(self.delete, ref_doc_id)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Do what `delete_nodes` does."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters)

    async def aclear(self) -> None:
        """Do what `clear` does."""
        await asyncio.to_thread(self.clear)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return what `get_nodes` returns."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:  # noqa: ANN401
        """Return what `query` returns."""
        return await asyncio.to_thread(self.query, query)
