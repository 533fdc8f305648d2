"""The words of pages, counted -> each page's BM25 score for a query's words.

The formula is Lucene's (Robertson & Zaragoza 2009, section 3, without the factor that changes no order), with full
length normalisation, as `LexicalEmbedder` has it. Pages' words come counted, and all scores are worked out from arrays
when an index is made: some changed pages among many cost little, where a library (bm25s) counts all words of all pages
again. Knows nothing of Milvus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Bm25", "WordCounts"]

K1 = 1.2


@dataclass(frozen=True)
class WordCounts:
    """A page's words.

    Attributes:
        ids: Which, each once: int32, shape (unique words,).
        counts: How often each counts: float32, of the same shape.
        length: Of the text, in words; 0 for a page that has none.
    """

    ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.float32]
    length: int


class Bm25:
    """BM25 over pages.

    Args:
        pages: Any number; those without words score 0, and do not count for averages.
        num_words: One more than the largest id of a word.
    """

    def __init__(self, pages: Sequence[WordCounts], num_words: int) -> None:
        """See the class."""
        self.num_words = num_words
        self._num_pages = len(pages)
        lengths = np.array([page.length for page in pages], dtype=np.float32)
        with_words = int((lengths > 0).sum())
        ids = np.concatenate([np.empty(0, np.int32), *(page.ids for page in pages)])
        counts = np.concatenate([np.empty(0, np.float32), *(page.counts for page in pages)])
        places = np.repeat(np.arange(len(pages), dtype=np.int32), [len(page.ids) for page in pages])
        usual = float(lengths.sum()) / max(with_words, 1)
        order = np.argsort(ids, kind="stable")
        holding = np.bincount(ids, minlength=num_words)
        self._starts = np.concatenate([[0], np.cumsum(holding)])
        self._places = places[order]
        saturated = counts / (counts + K1 * lengths[places] / max(usual, 1.0))
        self._idf = np.log1p((with_words - holding + 0.5) / (holding + 0.5)).astype(np.float32)
        self._scores = saturated[order] * np.repeat(self._idf, holding)
        self._unknown_idf = float(np.log1p((with_words + 0.5) / 0.5))

    @property
    def has_words(self) -> bool:
        """Whether any page has a word."""
        return len(self._places) > 0

    def scores(self, words: Sequence[int | None]) -> npt.NDArray[np.float32]:
        """Score all pages.

        Args:
            words: Ids of the query's words, None for one that no page has; one that comes twice counts twice.

        Returns:
            Float32, shape (pages,).
        """
        scores = np.zeros(self._num_pages, dtype=np.float32)
        for word in words:
            if word is not None:
                there = slice(self._starts[word], self._starts[word + 1])
                scores[self._places[there]] += self._scores[there]  # a page is there once
        return scores

    def highest_score(self, words: Sequence[int | None]) -> float:
        """Return what a page would score that had each of these words countless times."""
        return float(sum(self._unknown_idf if word is None else self._idf[word] for word in words))
