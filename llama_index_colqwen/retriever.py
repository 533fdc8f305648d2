"""A question -> ranked page nodes: the read path, as a LlamaIndex retriever.

Knows nothing of files or rendering.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_colqwen.embedders.protocol import (
    MultiVectorEmbedder,
    normalized,
    recommended_candidate_vectors,
    scorer,
)
from llama_index_colqwen.embedders.resolve import resolve_embedder
from llama_index_colqwen.errors import InvalidOptionError, QueryError, check_count
from llama_index_colqwen.fusion import fuse_by_rank, fuse_by_score, highest_rank_score
from llama_index_colqwen.late_interaction.maxsim import Candidate, RankedPage, rank
from llama_index_colqwen.nodes import PageNode, PageWithScore, node_from_page, node_without_image
from llama_index_colqwen.pages import Page
from llama_index_colqwen.query import embed_query, query_texts
from llama_index_colqwen.reading.redraw import draw_again
from llama_index_colqwen.store.filters import page_filter
from llama_index_colqwen.store.page_store import MilvusPageStore
from llama_index_colqwen.store.table import batches

if TYPE_CHECKING:
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.schema import QueryType
    from llama_index.core.vector_stores import MetadataFilters

    from llama_index_colqwen.embedders.lexical import LexicalEmbedder

__all__ = ["DEFAULT_CANDIDATE_K", "DEFAULT_TOP_K", "ColQwenRetriever", "Mode", "Score", "check_mode", "node_to_show"]

_LOGGER = logging.getLogger(__name__)

Score: TypeAlias = Literal["maxsim", "normalized"]
Mode: TypeAlias = Literal["visual", "text", "hybrid"]

DEFAULT_TOP_K = 3
DEFAULT_CANDIDATE_K = 100
_CANDIDATES_A_RESULT = 4
_READ_PAGES = 64


def check_mode(value: Mode) -> Mode:
    """Return a mode that there is.

    Raises:
        InvalidOptionError: If there is no such mode.
    """
    if value not in get_args(Mode):
        raise InvalidOptionError(f"mode is one of {', '.join(get_args(Mode))}; got {value!r}.")
    return value


class ColQwenRetriever(BaseRetriever):
    """Find the pages that answer a question: `retrieve(...) -> list[NodeWithScore]` of `ImageNode`, best first.

    A query is words; or, for a visual embedder, `QueryBundle("", image_path=...)`: the pages that look like an image.
    With both, both count, each by its number of tokens.

    The options from `similarity_top_k` to `text_weight` can be read and set at any time; the next question uses them.

    Args:
        store: An open store, or one of an existing collection.
        embedder: The one that made the collection.
        similarity_top_k: How many pages to return; fewer if there are fewer.
        candidate_k: How many pages are scored exactly, in a collection too large to score them all; at least four for
            each that is returned.
        filters: Which pages to look at, by their metadata; nested as one likes, with any operator.
        score: "maxsim", the sum over query tokens; or "normalized", divided by the most that it can be, which is their
            number (with words, the sum of their weights): in [-1, 1], and of the size of cosine similarities, which
            score-adding fusion with other retrievers needs. Where `mode` has other scores, these are as they are, or
            divided by the most that they can be.
        exact: Whether to score every page, however many there are.
        mode: "visual", by MaxSim of what the embedder makes of pages (of their words, if it is the lexical one);
            "text", by BM25 over their text, without the embedder: first words, captions, the section's title and the
            file's name count more; "hybrid", by both. An image in a query counts for MaxSim only.
        text_weight: How "hybrid" joins both: by default by ranks (reciprocal rank fusion); with a number from 0 to 1,
            by scores, of which BM25's counts so much, and MaxSim's the rest.
        callback_manager: As for every LlamaIndex retriever, and so is `verbose`.
        verbose: Whether LlamaIndex prints what it does.

    Raises:
        FingerprintMismatchError: If another embedder made the collection.
        InvalidOptionError: If an option has no such value.
    """

    def __init__(
        self,
        store: MilvusPageStore,
        embedder: str | MultiVectorEmbedder,
        similarity_top_k: int = DEFAULT_TOP_K,
        candidate_k: int = DEFAULT_CANDIDATE_K,
        filters: MetadataFilters | None = None,
        score: Score = "maxsim",
        exact: bool = False,
        *,
        mode: Mode = "visual",
        text_weight: float | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        """See the class."""
        self.mode, self.text_weight = mode, text_weight
        self.similarity_top_k, self.candidate_k = similarity_top_k, candidate_k
        self.filters, self.score, self.exact = filters, score, exact
        self._store = store
        self._embedder = resolve_embedder(embedder)
        store.open(self._embedder.fingerprint, recommended_candidate_vectors(self._embedder))
        super().__init__(callback_manager=callback_manager, verbose=verbose)

    # ---- options: what is wrong with one is said when it is set, and not at the next question

    @property
    def similarity_top_k(self) -> int:
        """How many pages are returned; fewer if there are fewer."""
        return self._similarity_top_k

    @similarity_top_k.setter
    def similarity_top_k(self, value: int) -> None:
        self._similarity_top_k = check_count("similarity_top_k", value)

    @property
    def candidate_k(self) -> int:
        """How many pages are scored exactly, where not all are; four times `similarity_top_k` if that is more."""
        return self._candidate_k

    @candidate_k.setter
    def candidate_k(self, value: int) -> None:
        self._candidate_k = check_count("candidate_k", value)

    @property
    def filters(self) -> MetadataFilters | None:
        """Which pages are looked at."""
        return self._filters

    @filters.setter
    def filters(self, value: MetadataFilters | None) -> None:
        page_filter(value)
        self._filters = value

    @property
    def score(self) -> Score:
        """What the nodes' scores are."""
        return self._score

    @score.setter
    def score(self, value: Score) -> None:
        if value not in get_args(Score):
            raise InvalidOptionError(f"score is one of {', '.join(get_args(Score))}; got {value!r}.")
        self._score = value

    @property
    def exact(self) -> bool:
        """Whether every page is scored."""
        return self._exact

    @exact.setter
    def exact(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise InvalidOptionError(f"exact is True or False; got {value!r}.")
        self._exact = value

    @property
    def mode(self) -> Mode:
        """By what pages are ranked."""
        return self._mode

    @mode.setter
    def mode(self, value: Mode) -> None:
        self._mode = check_mode(value)

    @property
    def text_weight(self) -> float | None:
        """How much BM25's score counts in "hybrid"; None where ranks count."""
        return self._text_weight

    @text_weight.setter
    def text_weight(self, value: float | None) -> None:
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1
        ):
            raise InvalidOptionError(f"text_weight is a number from 0 to 1, or None to join by ranks; got {value!r}.")
        self._text_weight = value

    # ---- retrieving

    if TYPE_CHECKING:  # what is retrieved is known better than by the base class

        def retrieve(self, str_or_query_bundle: QueryType) -> list[PageWithScore]:  # type: ignore[override]
            """Return the pages that answer, best first."""

        async def aretrieve(self, str_or_query_bundle: QueryType) -> list[PageWithScore]:  # type: ignore[override]
            """Return the pages that answer, best first."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        ways = {"visual": self._by_maxsim, "text": self._by_text, "hybrid": self._by_both}
        ranked, normalize = ways[self._mode](query_bundle)
        ranked = ranked[: self._similarity_top_k]
        pages = {page.page_id: page for page in self._store.get([page.page_id for page in ranked])}
        # A page that was deleted between ranking and reading is left out.
        return [
            PageWithScore(
                node=node_to_show(pages[page.page_id]),
                score=normalize(page.score) if self._score == "normalized" else page.score,
            )
            for page in ranked
            if page.page_id in pages
        ]

    # Each of these returns pages, best first, and what makes a score a normalized one.

    def _by_maxsim(self, query_bundle: QueryBundle) -> tuple[list[RankedPage], Callable[[float], float]]:
        query = embed_query(self._embedder, query_bundle, self.callback_manager)
        candidates = self._store.candidates(query, self._num_candidates, self._filters, self._exact)
        ranked = rank(query, candidates, self._similarity_top_k, scorer(self._embedder))
        return ranked, partial(normalized, self._embedder, query)

    def _by_text(self, query_bundle: QueryBundle) -> tuple[list[RankedPage], Callable[[float], float]]:
        texts = query_texts(query_bundle)
        if not texts:
            has = "only an image" if query_bundle.image_path else "none"
            raise QueryError(f'mode="text" looks for words, and the query has {has}: ask for something in words.')
        found = self._store.rank_texts(texts, self._words, self._similarity_top_k, self._filters)
        if not found.has_words:
            raise QueryError(f"The query has no letters or digits to look for: {texts[0][:80]!r}.")
        if found.stored_pages and not found.has_text:
            where = f"collection {self._store.collection_name!r} in {self._store.uri}"
            raise InvalidOptionError(
                f'mode="text" finds nothing in {where}: none of its {found.stored_pages} pages has text. Use a visual '
                'embedder and mode="visual", or index the files again with ocr="auto" and the extra [ocr].'
            )
        return found.pages, lambda score: score / found.highest_score

    def _by_both(self, query_bundle: QueryBundle) -> tuple[list[RankedPage], Callable[[float], float]]:
        query = embed_query(self._embedder, query_bundle, self.callback_manager)
        texts = query_texts(query_bundle)
        # With an image alone, or without a page that has a word of the query, this is the order by MaxSim.
        by_text = self._store.rank_texts(texts, self._words, self._num_candidates, self._filters).pages if texts else []
        candidates = self._store.candidates(query, self._num_candidates, self._filters, self._exact)
        pool = self._with_vectors(candidates, [page.page_id for page in by_text])
        by_maxsim = rank(query, pool, sys.maxsize, scorer(self._embedder))
        if self._text_weight is None:
            return fuse_by_rank(by_maxsim, by_text), lambda score: score / highest_rank_score(2)
        return fuse_by_score(by_maxsim, by_text, self._text_weight), lambda score: score

    @property
    def _words(self) -> LexicalEmbedder:
        """What counts the words of texts: in its language where the embedder is a lexical one, or else in English."""
        from llama_index_colqwen.embedders.lexical import LexicalEmbedder

        return self._embedder if isinstance(self._embedder, LexicalEmbedder) else LexicalEmbedder()

    @property
    def _num_candidates(self) -> int:
        return max(self._candidate_k, _CANDIDATES_A_RESULT * self._similarity_top_k)

    def _with_vectors(self, candidates: Iterable[Candidate], page_ids: list[str]) -> Iterator[Candidate]:
        """Add these pages to the candidates, unless they are among them."""
        there = set()
        for candidate in candidates:
            there.add(candidate.page_id)
            yield candidate
        for some in batches([page_id for page_id in page_ids if page_id not in there], _READ_PAGES):
            yield from self._store.vectors(some)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # The default would run _retrieve on the event loop.
        return await asyncio.to_thread(self._retrieve, query_bundle)


def node_to_show(page: Page) -> PageNode:
    """Return a page's node with its image, which is drawn again where it is gone, or else without."""
    if page.image_path is None or Path(page.image_path).exists() or draw_again(page):
        return node_from_page(page)
    _LOGGER.warning("The image of %s is gone: %s. Index its file again.", page.file_name, page.image_path)
    return node_without_image(page)
