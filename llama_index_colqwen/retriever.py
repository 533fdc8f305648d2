"""A question -> ranked page nodes: the read path, as a LlamaIndex retriever.

Knows nothing of files or rendering.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores import MetadataFilters

from llama_index_colqwen.embedders.protocol import (
    MultiVectorEmbedder,
    recommended_candidate_vectors,
    resolve_embedder,
)
from llama_index_colqwen.errors import InvalidOptionError, QueryError
from llama_index_colqwen.late_interaction.maxsim import rank
from llama_index_colqwen.nodes import node_from_page
from llama_index_colqwen.pages import MultiVector
from llama_index_colqwen.store.filters import page_filter
from llama_index_colqwen.store.page_store import MilvusPageStore

__all__ = ["ColQwenRetriever", "Score"]

_LOGGER = logging.getLogger(__name__)

Score: TypeAlias = Literal["maxsim", "normalized"]


class ColQwenRetriever(BaseRetriever):
    """Find the pages that answer a question: `retrieve(...) -> list[NodeWithScore]` of `ImageNode`, best first.

    Args:
        store: An open store, or one of an existing collection.
        embedder: The one that made the collection.
        similarity_top_k: How many pages to return; fewer if there are fewer.
        candidate_k: How many pages are scored exactly, in a collection too large to score them all; at least four for
            each that is returned.
        filters: Which pages to look at, by their metadata; nested as one likes, with any operator.
        exact: Whether to score every page, however many there are.
        score: "maxsim", the sum over query tokens; or "normalized", divided by their number: in [-1, 1], and of the
            size of cosine similarities, which score-adding fusion with other retrievers needs.
        kwargs: `BaseRetriever`'s.

    Raises:
        FingerprintMismatchError: If another embedder made the collection.
    """

    def __init__(
        self,
        store: MilvusPageStore,
        embedder: str | MultiVectorEmbedder,
        similarity_top_k: int = 3,
        candidate_k: int = 100,
        filters: MetadataFilters | None = None,
        score: Score = "maxsim",
        exact: bool = False,
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> None:
        """See the class."""
        if similarity_top_k < 1:
            raise InvalidOptionError(f"similarity_top_k is at least 1; got {similarity_top_k}.")
        if candidate_k < 1:
            raise InvalidOptionError(f"candidate_k is at least 1; got {candidate_k}.")
        if score not in get_args(Score):
            raise InvalidOptionError(f"score is one of {', '.join(get_args(Score))}; got {score!r}.")
        self._store = store
        self._embedder = resolve_embedder(embedder)
        self._similarity_top_k = similarity_top_k
        self._candidate_k = max(candidate_k, 4 * similarity_top_k)
        self._filters = filters
        self._score = score
        self._exact = exact
        page_filter(filters)  # what is wrong with filters is said now, and not at the first question
        store.open(self._embedder.fingerprint, recommended_candidate_vectors(self._embedder))
        super().__init__(**kwargs)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query = self._embed(query_bundle)
        candidates = self._store.candidates(query, self._candidate_k, self._filters, self._exact)
        ranked = rank(query, candidates, self._similarity_top_k)
        scale = 1 / len(query) if self._score == "normalized" else 1.0
        pages = {page.page_id: page for page in self._store.get([page.page_id for page in ranked])}
        for page in pages.values():
            if page.image_path and not Path(page.image_path).exists():
                _LOGGER.warning("The image of %s is gone: %s. Index its file again.", page.file_name, page.image_path)
        # A page that was deleted between ranking and reading is left out.
        return [
            NodeWithScore(node=node_from_page(pages[page.page_id]), score=page.score * scale)
            for page in ranked
            if page.page_id in pages
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # The default would run _retrieve on the event loop.
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def _embed(self, query_bundle: QueryBundle) -> MultiVector:
        """Embed all the bundle's strings as one query: MaxSim sums over the tokens of each."""
        texts = _texts(query_bundle)
        if not texts:
            raise QueryError("The query is empty: ask for something in words.")
        query: MultiVector = np.concatenate(self._embedder.embed_queries(texts))
        return query


def _texts(query_bundle: QueryBundle) -> Sequence[str]:
    # embedding_strs and not query_str: query transforms (HyDE, say) put their texts there.
    return [stripped for text in query_bundle.embedding_strs if (stripped := text.strip())]
