from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_colqwen import DimensionMismatchError, InvalidOptionError
from llama_index_colqwen.late_interaction.maxsim import Candidate, maxsim, maxsim_scores, rank
from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, VectorDtype, encode_vectors
from tests.fakes import unit_rows


def test_score_is_the_sum_of_each_query_tokens_best_product() -> None:
    query = np.array([[1, 0], [0.6, 0.8]], dtype=np.float32)
    page = np.array([[0, 1], [0.8, 0.6], [-1, 0]], dtype=np.float32)
    # row 1: max(0, .8, -1) = .8; row 2: max(.8, .96, -.6) = .96
    assert maxsim(query, page) == pytest.approx(1.76)


def test_page_with_only_negative_similarities_keeps_its_score_beside_a_longer_page() -> None:
    query = np.array([[1, 0]], dtype=np.float32)
    negative = np.array([[-1, 0]], dtype=np.float32)
    longer = np.array([[0, 1], [0, -1], [0.6, 0.8]], dtype=np.float32)
    assert maxsim_scores(query, [negative, longer]).tolist() == pytest.approx([-1.0, 0.6])
    assert maxsim_scores(query, [longer, negative, longer]).tolist() == pytest.approx([0.6, -1.0, 0.6])


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 99))
def test_pages_scored_together_score_as_each_alone(lengths: list[int], query_tokens: int, seed: int) -> None:
    query = unit_rows(seed, query_tokens)
    pages = [unit_rows(seed + 1 + number, length) for number, length in enumerate(lengths)]
    alone = [float((query @ page.T).max(axis=1).sum()) for page in pages]
    np.testing.assert_allclose(maxsim_scores(query, pages), alone, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_encoded_pages_score_as_their_decoded_vectors(dtype: VectorDtype) -> None:
    query = unit_rows(0, 5, dim=16)
    pages = [encode_vectors(unit_rows(number, 1 + number % 9, dim=16), dtype) for number in range(1, 40)]
    np.testing.assert_allclose(
        maxsim_scores(query, pages), maxsim_scores(query, [page.decode() for page in pages]), atol=1e-5
    )


def test_page_longer_than_a_block_is_scored_whole() -> None:
    query, page = unit_rows(0, 3), unit_rows(1, 10_000)
    assert maxsim(query, page) == pytest.approx(float((query @ page.T).max(axis=1).sum()), abs=1e-5)


def test_no_pages_have_no_scores() -> None:
    assert maxsim_scores(unit_rows(0, 3), []).shape == (0,)


@pytest.mark.parametrize(
    ("query", "page"),
    [
        (np.zeros((1, 4)), np.zeros((1, 3))),
        (np.zeros((0, 4)), np.zeros((1, 4))),
        (np.zeros((1, 4)), np.zeros((0, 4))),
        (np.zeros(4), np.zeros((1, 4))),
    ],
)
def test_shapes_that_cannot_be_compared_are_named(query: np.ndarray, page: np.ndarray) -> None:
    with pytest.raises(DimensionMismatchError, match=r"\(\d*,? ?\d*\)"):
        maxsim(query.astype(np.float32), page.astype(np.float32))


def test_equal_scores_are_ranked_by_page_id() -> None:
    vectors = unit_rows(1, 2)
    candidates = [Candidate(name, EncodedVectors(vectors)) for name in ("c", "a", "b")]
    assert [page.page_id for page in rank(vectors, candidates, 2)] == ["a", "b"]


def test_ranking_many_blocks_equals_sorting_all_scores() -> None:
    query = unit_rows(0, 5, dim=8)
    # 300 pages of 200 vectors: more than one block
    vectors = [EncodedVectors(unit_rows(number + 1, 200, dim=8)) for number in range(300)]
    candidates = [Candidate(f"{number:03d}", encoded) for number, encoded in enumerate(vectors)]
    scores = {candidate.page_id: maxsim(query, candidate.vectors) for candidate in candidates}
    expected = sorted(scores, key=lambda name: (-scores[name], name))
    ranked = rank(query, iter(candidates), top_k=300)
    assert [page.page_id for page in ranked] == expected
    assert [page.page_id for page in rank(query, iter(candidates), top_k=7)] == expected[:7]


def test_returning_no_pages_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="top_k.*got 0"):
        rank(unit_rows(0, 1), [], 0)
