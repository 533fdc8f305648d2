from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from llama_index_colqwen import PatchGrid, Region, TokenMatch, WordBox
from llama_index_colqwen.explain.regions import find_regions
from llama_index_colqwen.explain.similarities import Places, heat, match_tokens, patches, words

GRID = PatchGrid(10, 8, 3)


def match(
    share: float, places: Sequence[int], *, number: int = 80, is_word: bool = True, text: str = "x"
) -> TokenMatch:
    similarities = np.zeros(number, dtype=np.float32)
    similarities[list(places)] = share
    return TokenMatch(text, share, is_word, bool(places), list(places), similarities)


def regions_of(tokens: Sequence[TokenMatch], places: Places, found: Sequence[WordBox] = ()) -> list[Region]:
    return find_regions(tokens, places, heat(tokens, places.kind), found, 0.8, 3)


def sides(region: Region) -> tuple[float, float, float, float]:
    return region.left, region.top, region.right, region.bottom


def test_patches_are_equal_parts_line_by_line_from_the_top_left() -> None:
    places = patches(PatchGrid(2, 4, 5))
    assert places.rows.tolist() == list(range(5, 13))
    assert places.boxes[0].tolist() == [0, 0, 0.25, 0.5]
    assert places.boxes[6].tolist() == [0.5, 0.5, 0.75, 1]


def test_patches_that_touch_are_one_rectangle_and_those_apart_are_two() -> None:
    tokens = [match(1.0, [9]), match(0.9, [18]), match(0.5, [70])]  # the first two at a corner
    one, two = regions_of(tokens, patches(GRID))
    assert sides(one) == pytest.approx((1 / 8, 1 / 10, 3 / 8, 3 / 10))
    assert one.share == pytest.approx(1.9 / 2.4)
    assert sides(two) == pytest.approx((6 / 8, 8 / 10, 7 / 8, 9 / 10))


def test_enough_of_the_score_is_enough_and_three_are_the_most() -> None:
    far = [match(share, [place]) for share, place in ((1.0, 0), (0.1, 3), (0.09, 36), (0.02, 77))]
    assert [round(region.share, 2) for region in regions_of(far, patches(GRID))] == [0.83]
    even = [match(1.0, [place]) for place in (0, 3, 36, 77)]
    assert len(regions_of(even, patches(GRID))) == 3


def test_neighbours_that_are_warm_belong_to_the_region() -> None:
    token = match(1.0, [27])
    token.similarities[[26, 28, 35]] = 0.8
    [region] = regions_of([token], patches(GRID))
    assert sides(region) == pytest.approx((2 / 8, 3 / 10, 5 / 8, 5 / 10))


def test_a_word_that_stands_in_many_places_counts_once_where_others_are() -> None:
    lines = [WordBox(f"word{line}", 0.1, 0.1 * line, 0.2, 0.1 * line + 0.02) for line in range(9)]
    beside = WordBox("beside", 0.22, 0.5, 0.3, 0.52)
    boxes = [*lines, beside]
    tokens = [match(1.0, [1, 3, 5], number=10, text="often"), match(0.5, [9], number=10, text="once")]
    [region] = regions_of(tokens, words(boxes, []), boxes)
    assert sides(region) == pytest.approx((0.1, 0.5, 0.3, 0.52))
    assert (region.share, region.tokens, region.text) == (1, ["often", "once"], "word5 beside")


def test_nothing_that_matches_is_no_region() -> None:
    assert regions_of([match(0.0, [])], patches(GRID)) == []
    assert regions_of([match(0.5, [])], words([], [[]])) == []


def test_a_vector_of_no_place_wins_for_the_score_but_marks_nothing() -> None:
    page = np.eye(6, 6, dtype=np.float32)  # three vectors of a prompt, three patches
    [prompt, patch] = match_tokens(page[[0, 4]], page, ["a", "b"], [True, True], patches(PatchGrid(1, 3, 3)))
    assert (prompt.places, prompt.is_clear, prompt.share) == ([], False, 1)
    assert (patch.places, patch.is_clear) == ([1], True)
    assert patch.similarities.tolist() == [0, 1, 0]


def test_heat_is_zero_where_no_place_stands_out() -> None:
    flat = TokenMatch("x", 0.3, True, True, [0], np.full(80, 0.3, dtype=np.float32))
    assert heat([flat], "patches").max() == 0
    assert heat([flat], "patches", 0).max() == 0


def test_heat_of_a_token_is_measured_by_the_clearest() -> None:
    tokens = [match(1.0, [3]), match(0.25, [5])]
    assert heat(tokens, "patches", 0).max() == 1
    assert heat(tokens, "patches", 1).max() == 0.25
    padding = match(1.0, [7], is_word=False)
    assert heat([*tokens, padding], "patches")[7] == 0
