"""BM25 from counted words, beside bm25s as the reference."""

from __future__ import annotations

from collections import Counter

import bm25s
import numpy as np

from llama_index_colqwen.store.bm25 import K1, Bm25, WordCounts


def counted(ids: list[int]) -> WordCounts:
    counts = Counter(ids)
    return WordCounts(np.array(list(counts), np.int32), np.array(list(counts.values()), np.float32), len(ids))


def random_pages(seed: int, pages: int, words: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.zipf(1.3, random.integers(1, 60)).clip(max=words).tolist() for _ in range(pages)]


def test_scores_are_those_of_bm25s() -> None:
    pages = [[word - 1 for word in page] for page in random_pages(0, 40, 80)]
    reference = bm25s.BM25(method="lucene", k1=K1, b=1.0)
    reference.index((pages, {str(word): word for word in range(80)}), show_progress=False)
    ours = Bm25([counted(page) for page in pages], 80)
    for query in ([0], [3, 17, 40], [5, 5, 60], [79]):
        np.testing.assert_allclose(ours.scores(query), reference.get_scores_from_ids(query), rtol=1e-5)


def test_pages_without_words_score_zero_and_change_no_score() -> None:
    pages = [counted(page) for page in ([0, 1], [1, 2, 2])]
    with_blank = Bm25([pages[0], counted([]), pages[1]], 3)
    assert with_blank.scores([1, 2])[1] == 0
    np.testing.assert_array_equal(with_blank.scores([1, 2])[[0, 2]], Bm25(pages, 3).scores([1, 2]))


def test_words_that_no_page_has_score_nothing_and_raise_the_highest_score() -> None:
    index = Bm25([counted([0, 1]), counted([1])], 2)
    assert not index.scores([None]).any()
    assert index.highest_score([1, None]) > index.highest_score([1]) > index.scores([1]).max()


def test_no_pages_at_all() -> None:
    index = Bm25([], 0)
    assert not index.has_words
    assert index.scores([None]).shape == (0,)
