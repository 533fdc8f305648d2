from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_colqwen import DimensionMismatchError, InvalidOptionError, MultiVector
from llama_index_colqwen.late_interaction import pooling
from llama_index_colqwen.late_interaction.maxsim import maxsim
from llama_index_colqwen.late_interaction.pooling import pool_to, pool_tokens
from tests.fakes import unit_rows


def page_of_topics(seed: int, rows: int = 240, topics: int = 12, dim: int = 32) -> MultiVector:
    """Draw a page whose rows lie around topics; every five rows another follows, and each comes back several times."""
    generator = np.random.default_rng(seed)
    topic = np.repeat(generator.integers(topics, size=rows // 5), 5)
    vectors = unit_rows(seed, topics, dim)[topic] + generator.normal(size=(rows, dim)) * 0.4 / np.sqrt(dim)
    return normal(vectors)


def normal(vectors: np.ndarray) -> MultiVector:
    unit: MultiVector = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def test_nearest_rows_become_their_normalised_mean() -> None:
    page = np.array([[1, 0], [0, 1], [0.8, 0.6], [-0.6, 0.8]], dtype=np.float32)
    # rows 0 and 2 have the largest product, .8: their sum is (1.8, .6), of length 1.897; rows 1 and 3 also have .8, and
    # the sum (-.6, 1.8)
    expected = [[0.948683, 0.316228], [-0.316228, 0.948683]]
    np.testing.assert_allclose(pool_tokens(page, 2), expected, atol=1e-6)


def test_mean_is_weighted_by_rows_when_clusters_merge() -> None:
    page = normal(np.array([[1, 0], [1, 0], [1, 0], [0.6, 0.8]]))
    # three times (1, 0) and once (.6, .8): (3.6, .8), of length 3.688
    np.testing.assert_allclose(pool_to(page, 1), [[0.976187, 0.216930]], atol=1e-6)


def test_row_unlike_all_others_is_kept_while_like_rows_are_merged() -> None:
    outlier = np.array([[0, 0, 0, 1]], dtype=np.float32)
    page = normal(np.concatenate([unit_rows(0, 1) + 0.01 * unit_rows(1, 20), outlier, unit_rows(2, 1)]))
    pooled = pool_to(page, 3)
    assert (pooled @ outlier.T).max() == pytest.approx(1)


@pytest.mark.parametrize(("rows", "pool_factor", "pooled"), [(1030, 3, 343), (744, 2, 372), (7, 4, 1), (3, 5, 1)])
def test_page_keeps_one_vector_for_every_pool_factor_tokens(rows: int, pool_factor: int, pooled: int) -> None:
    assert pool_tokens(unit_rows(0, rows, 16), pool_factor).shape == (pooled, 16)


def test_pool_factor_of_one_changes_nothing() -> None:
    page = unit_rows(0, 9)
    assert pool_tokens(page, 1).tobytes() == page.tobytes()


def test_page_with_fewer_rows_than_asked_for_is_returned_as_it_is() -> None:
    page = unit_rows(0, 9)
    np.testing.assert_array_equal(pool_to(page, 32), page)


def test_equal_rows_are_merged_before_any_others_and_fill_up_the_number() -> None:
    distinct = unit_rows(0, 5, 16)
    page = np.tile(distinct, (40, 1))
    for num_vectors in (5, 8, 100):
        pooled = pool_to(page, num_vectors)
        assert pooled.shape == (num_vectors, 16)
        np.testing.assert_allclose((pooled @ distinct.T).max(axis=0), 1, atol=1e-6)
        np.testing.assert_allclose((pooled @ distinct.T).max(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("page", [np.eye(200), np.ones((700, 3))], ids=["orthogonal", "equal"])
def test_rows_all_as_far_from_each_other_are_merged_in_few_rounds(
    page: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    remaining: list[int] = []
    pairs = pooling._pairs

    def watched(centres: MultiVector, *given: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
        remaining.append(len(centres))
        return pairs(centres, *given)

    monkeypatch.setattr(pooling, "_pairs", watched)
    pool_to(normal(page), 2)
    assert len(remaining) < 60  # one pair a round would be 198 and 698


def test_opposite_rows_without_a_mean_are_pooled_to_the_first() -> None:
    page = np.array([[0.6, 0.8], [-0.6, -0.8]], dtype=np.float32)
    np.testing.assert_allclose(pool_tokens(page, 2), page[:1], atol=1e-6)


def test_rows_in_float16_and_slices_come_back_as_contiguous_float32() -> None:
    page: Any = unit_rows(0, 20).astype(np.float16)[::-2]
    for pool_factor in (1, 2):
        pooled = pool_tokens(page, pool_factor)
        assert pooled.dtype == np.float32
        assert pooled.flags.c_contiguous


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 6), st.integers(0, 99))
def test_pooled_rows_are_unit_rows_in_the_promised_number_and_the_same_every_time(
    rows: int, pool_factor: int, distinct: int, seed: int
) -> None:
    # opposite and equal rows in any mixture
    choices = np.concatenate([unit_rows(seed, distinct), -unit_rows(seed, distinct), unit_rows(seed + 1, rows)])
    page = choices[np.random.default_rng(seed).integers(len(choices), size=rows)]
    before = page.copy()
    pooled = pool_tokens(page, pool_factor)
    assert pooled.shape == (max(rows // pool_factor, 1), 4)
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(pool_tokens(page, pool_factor), pooled)
    np.testing.assert_array_equal(page, before)


@pytest.mark.parametrize(("pool_factor", "kept"), [(2, 0.975), (3, 0.965), (4, 0.957), (6, 0.95)])
def test_pooling_keeps_more_of_the_score_than_the_mean_of_consecutive_rows(pool_factor: int, kept: float) -> None:
    ours, naive = [], []
    for seed in range(12):
        page = page_of_topics(seed)
        query = normal(page[::10] + unit_rows(seed + 100, len(page[::10]), 32) * 0.5)
        starts = np.arange(0, len(page), pool_factor)
        ours.append(maxsim(query, pool_tokens(page, pool_factor)) / maxsim(query, page))
        naive.append(maxsim(query, normal(np.add.reduceat(page, starts, axis=0))) / maxsim(query, page))
    assert np.mean(ours) > kept
    assert 1 - np.mean(ours) < 0.75 * (1 - np.mean(naive))
    assert max(ours) <= 1.0 + 1e-5


@pytest.mark.parametrize("pool_factor", [0, -2])
def test_pool_factor_below_one_is_named(pool_factor: int) -> None:
    with pytest.raises(InvalidOptionError, match=f"pool_factor.*got {pool_factor}"):
        pool_tokens(unit_rows(0, 3), pool_factor)


def test_pooling_to_no_vectors_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="num_vectors.*got 0"):
        pool_to(unit_rows(0, 3), 0)


@pytest.mark.parametrize("shape", [(0, 4), (4,)])
def test_shape_that_is_no_multi_vector_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(DimensionMismatchError, match=r"\(\d, ?\d?\)|\(4,\)"):
        pool_tokens(np.zeros(shape, dtype=np.float32), 2)
