"""A query's words -> the pages whose text has them, by BM25 over the text that Milvus keeps.

The texts are read at the first query, and their words kept in memory. What this process writes is seen at the next
query; what others write on a server, a moment later.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from llama_index_colqwen.concurrency import Lock
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.maxsim import RankedPage
from llama_index_colqwen.pages import Page
from llama_index_colqwen.store.bm25 import Bm25, WordCounts
from llama_index_colqwen.store.search import CandidateSearch, PageFilter
from llama_index_colqwen.store.table import MilvusTable, batches

__all__ = ["TextRanking", "TextSearch", "WordCounter", "note_change"]

_LOGGER = logging.getLogger(__name__)

_READ_ROWS = 512  # 32 MB of the longest texts that a row holds; servers answer with 64

# A server is asked whether others have changed anything so long after it was asked last; longer, where that takes it a
# while, so that it costs a tenth of the time at most.
_LOOK_SECONDS = 2.0
_LOOK_SHARE = 10

_LOOKED_AT = 4  # pages that are looked at for each that is wanted, before all that a filter keeps are found


# How often this process has changed a collection.
_CHANGES: Counter[tuple[str, str]] = Counter()


def note_change(key: tuple[str, str]) -> None:
    """Take note that this process has changed a collection, by its uri and name: its texts are looked at again."""
    _CHANGES[key] += 1


class WordCounter(Protocol):
    """What splits texts into the words that are compared, such as `LexicalEmbedder`."""

    @property
    def fingerprint(self) -> EmbedderFingerprint:
        """Changes whenever the same text would become other words."""

    def count_words(self, pages: Iterable[Page]) -> Iterator[tuple[dict[str, float], int]]:
        """Return pages' words, how often each counts, and the length of the text in words, 0 if it has none."""

    def query_words(self, query: str) -> list[str]:
        """Split a query: each word once, without what says nothing."""


@dataclass(frozen=True)
class TextRanking:
    """Pages that have a query's words.

    Attributes:
        pages: Best first, equal scores by page id; only those that have any.
        highest_score: What a page would score that had each word countless times.
        stored_pages: How many pages were searched, filters apart.
        has_text: Whether any of these has text.
        has_words: Whether the query has words.
    """

    pages: list[RankedPage] = field(repr=False)
    highest_score: float
    stored_pages: int
    has_text: bool
    has_words: bool


class TextSearch:
    """BM25 over a collection's texts, safe for many threads.

    Args:
        pages: The pages' rows.
        search: Which knows what there is, and what filters ask of it.
        key: Of the collection, as for `note_change`.
        is_local: Whether nobody but this process can change it.
    """

    def __init__(self, pages: MilvusTable, search: CandidateSearch, key: tuple[str, str], is_local: bool) -> None:
        """See the class; nothing is read yet."""
        self._rows, self._search, self._key, self._is_local = pages, search, key, is_local
        self._lock = Lock()
        self._words: EmbedderFingerprint | None = None
        self._word_ids: dict[str, int] = {}
        self._known: dict[str, _KnownPage] = {}
        self._index: _Index | None = None
        self._changes = -1
        self._look_again = 0.0

    def rank(
        self, queries: Sequence[str], words: WordCounter, top_k: int, chosen: PageFilter | None = None
    ) -> TextRanking:
        """Rank pages by the words of all queries: a word that two have counts twice.

        Args:
            queries: Texts whose words are looked for.
            words: What splits texts; another one than before makes the index anew.
            top_k: How many pages to return.
            chosen: Which pages to look at.
        """
        index = self._current(words)
        query = [index.word_id(word) for text in queries for word in words.query_words(text)]
        scores = index.bm25.scores(query)
        found = np.flatnonzero(scores)
        order = found[np.argsort(-scores[found], kind="stable")]  # pages are in order of their ids

        def first(number: int) -> list[RankedPage]:
            return [RankedPage(index.page_ids[place], float(scores[place])) for place in order[:number].tolist()]

        pages = first(top_k if chosen is None else _LOOKED_AT * top_k)
        if chosen is not None:
            # Most filters keep some of the best pages: these few are asked for first, and all that it keeps only then.
            entries = self._search.entries([page.page_id for page in pages])
            kept = [page for page in pages if page.page_id in entries and chosen.keeps(entries[page.page_id])]
            if len(kept) < top_k and len(pages) < len(order):
                matching = {entry.page_id for entry in self._search.find(chosen.expression, chosen.keeps)}
                kept = [page for page in first(len(order)) if page.page_id in matching]
            pages = kept[:top_k]
        highest = index.bm25.highest_score(query)
        return TextRanking(pages, highest, len(index.page_ids), index.bm25.has_words, bool(query))

    # ---- following changes

    def _current(self, words: WordCounter) -> _Index:
        """Return the index of the texts as they are; who comes while it is made waits for it."""
        with self._lock:
            if words.fingerprint != self._words:
                self._words, self._word_ids, self._known, self._index = words.fingerprint, {}, {}, None
            changes = _CHANGES[self._key]  # before reading: what is written meanwhile is read again
            started = time.monotonic()
            if self._index is not None and changes == self._changes and (self._is_local or started < self._look_again):
                return self._index
            if self._is_local:
                stored = {entry.page_id: entry.revision for entry in self._search.find()}
            else:
                stored = {row["page_id"]: row["revision"] for row in self._rows.scan(["page_id", "revision"])}
            gone = [page_id for page_id in self._known if page_id not in stored]
            new = [
                page_id
                for page_id, revision in stored.items()
                if page_id not in self._known or self._known[page_id].revision != revision
            ]
            for page_id in gone:
                del self._known[page_id]
            if len(new) > _READ_ROWS:
                _LOGGER.info("Counting the words of %d pages.", len(new))
            for some in batches(new, _READ_ROWS):
                self._take(self._rows.read(some, _TEXT_FIELDS, _READ_ROWS), words)
            if self._index is None or gone or new:
                self._index = self._make()
            self._changes = changes
            took = time.monotonic() - started
            self._look_again = time.monotonic() + max(_LOOK_SECONDS, _LOOK_SHARE * took)
            return self._index

    def _take(self, rows: Sequence[Mapping[str, Any]], words: WordCounter) -> None:
        """Take in the words of some pages."""
        for row, (counts, length) in zip(rows, words.count_words(map(_page, rows)), strict=True):
            ids = [self._word_ids.setdefault(word, len(self._word_ids)) for word in counts]
            counted = WordCounts(np.array(ids, np.int32), np.array(list(counts.values()), np.float32), length)
            self._known[row["page_id"]] = _KnownPage(row["revision"], counted)

    def _make(self) -> _Index:
        page_ids = sorted(self._known)
        bm25 = Bm25([self._known[page_id].words for page_id in page_ids], len(self._word_ids))
        if page_ids and not bm25.has_words:
            _LOGGER.warning(
                "None of the %d pages of collection %r has text: they are not found by their words.",
                len(page_ids),
                self._rows.name,
            )
        return _Index(page_ids, bm25, self._word_ids)


_TEXT_FIELDS = ("page_id", "document_id", "file_name", "page_number", "revision", "text", "metadata")


@dataclass(frozen=True)
class _KnownPage:
    """What a page's words were when it had this revision."""

    revision: str
    words: WordCounts


@dataclass(frozen=True)
class _Index:
    """The texts as they were at one moment."""

    page_ids: list[str]
    bm25: Bm25
    word_ids: dict[str, int]  # words that have come since, too

    def word_id(self, word: str) -> int | None:
        """Return a word's id; None if no page had it."""
        found = self.word_ids.get(word)
        return found if found is not None and found < self.bm25.num_words else None


def _page(row: Mapping[str, Any]) -> Page:
    """Return as much of a page as its words are counted by."""
    node = {"metadata": row["metadata"] or {}}
    return Page(row["page_id"], row["document_id"], row["file_name"], row["page_number"], row["text"], node=node)
