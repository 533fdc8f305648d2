from __future__ import annotations

import pytest

from llama_index_colqwen.fusion import fuse_by_rank, fuse_by_score, highest_rank_score
from llama_index_colqwen.late_interaction.maxsim import RankedPage


def ranking(**scores: float) -> list[RankedPage]:
    return [RankedPage(page_id, score) for page_id, score in scores.items()]


def as_dict(pages: list[RankedPage]) -> dict[str, float]:
    return {page.page_id: page.score for page in pages}


def test_ranks_are_fused_reciprocally() -> None:
    fused = fuse_by_rank(ranking(a=9, b=8, c=7), ranking(c=0.3, a=0.2))
    assert as_dict(fused) == {"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62}
    assert [page.page_id for page in fused] == ["a", "c", "b"]


def test_a_page_that_is_first_in_all_rankings_has_the_highest_score() -> None:
    assert fuse_by_rank(ranking(a=1), ranking(a=5, b=2))[0].score == highest_rank_score(2)


def test_equal_sums_are_ordered_by_page_id() -> None:
    assert [page.page_id for page in fuse_by_rank(ranking(b=2, a=1), ranking(a=2, b=1))] == ["a", "b"]
    assert [page.page_id for page in fuse_by_score(ranking(b=2, a=1), ranking(a=3), 0.5)] == ["a", "b"]


def test_scores_are_brought_to_one_range_and_weighted() -> None:
    fused = fuse_by_score(ranking(a=12, b=11, c=10), ranking(c=4, b=1), 0.2)
    assert as_dict(fused) == pytest.approx({"a": 0.8, "b": 0.8 * 0.5 + 0.2 * 0.25, "c": 0.2})


@pytest.mark.parametrize(("weight", "best"), [(0.0, "a"), (1.0, "c")])
def test_a_weight_at_an_end_leaves_the_order_to_one_ranking(weight: float, best: str) -> None:
    assert fuse_by_score(ranking(a=12, b=11, c=10), ranking(c=4, b=1), weight)[0].page_id == best


def test_equal_scores_and_empty_rankings_are_no_division_by_zero() -> None:
    assert as_dict(fuse_by_score(ranking(a=1, b=1), [], 0.5)) == {"a": 0.5, "b": 0.5}
    assert as_dict(fuse_by_score([], ranking(a=3), 0.5)) == {"a": 0.5}
    assert fuse_by_score([], [], 0.5) == fuse_by_rank([], []) == []
