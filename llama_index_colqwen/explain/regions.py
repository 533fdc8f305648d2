"""What the tokens of a query match -> the few rectangles of the page that carry most of its score.

Knows nothing of pictures or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llama_index_colqwen.explain.similarities import Box, Floats, Places, TokenMatch
from llama_index_colqwen.pages import WordBox

__all__ = ["Region", "find_regions"]

_WARM = 0.5  # patches that are half as warm as the warmest belong to the picture that it is a part of

_WORD_GAP = 0.06  # of the page's width, on both sides of a word: words that are nearer than twice this are together


@dataclass(frozen=True)
class Region:
    """A rectangle of a page, as fractions of the page's width and height, from its top left.

    Attributes:
        left: And `top`, `right`, `bottom`: from 0 to 1.
        share: Of what the query's tokens match on the page, the part that is matched here, from 0 to 1; what is in two
            regions counts for the first.
        tokens: Those query tokens.
        text: The words within, by the text layer or OCR.
    """

    left: float
    top: float
    right: float
    bottom: float
    share: float
    tokens: list[str] = field(default_factory=list)
    text: str = ""

    def scaled(self, width: float, height: float) -> Box:
        """Return left, top, right, bottom in the unit of a page's width and height: pixels, or points of a PDF.

        >>> Region(0.25, 0.5, 0.75, 1.0, 1.0).scaled(600, 800)
        (150.0, 400.0, 450.0, 800.0)
        """
        return self.left * width, self.top * height, self.right * width, self.bottom * height


def find_regions(
    tokens: Sequence[TokenMatch],
    places: Places,
    warmth: Floats,
    words: Sequence[WordBox],
    coverage: float,
    max_regions: int,
) -> list[Region]:
    """Find the rectangles that carry most of the score, the largest share first.

    Places that won, or are warm, and touch are one rectangle; words also with others between them, or in the next line.

    Args:
        tokens: What they match; only what was asked and matches a place counts.
        places: Of the page.
        warmth: Of the places, as `heat` gives it for the whole query.
        words: Of the page.
        coverage: How much of the score is enough, from 0 to 1.
        max_regions: How many rectangles at most.
    """
    matching = [match for match in tokens if match.is_clear and match.share > 0]
    matching = [match for match in matching if match.is_word] or matching
    marked = {place for match in matching for place in match.places}
    if places.kind == "patches" and marked:
        marked |= set(np.flatnonzero(warmth >= _WARM).tolist())
    rectangles = _rectangles(places, sorted(marked))
    total = sum(match.share for match in matching)
    left = list(matching)
    found: list[Region] = []
    while left and len(found) < max_regions:
        held = [[match for match in left if inside & set(match.places)] for _, inside in rectangles]
        shares = [sum(match.share for match in some) for some in held]
        best = int(np.argmax(shares))
        box = rectangles[best][0]
        names = [match.text for match in held[best]]
        found.append(Region(*box, shares[best] / total, names, " ".join(_inside(box, words))))
        left = [match for match in left if match not in held[best]]
        if total - sum(match.share for match in left) >= coverage * total:
            break
    return found


def _rectangles(places: Places, marked: Sequence[int]) -> list[tuple[Box, set[int]]]:
    """Join places that touch, until the rectangles around them are disjoint; each with the places within it."""
    boxes = places.boxes[list(marked)]
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    # Half of a patch, so that those touch whose corners do; of words, so much that those of a sentence do.
    gap_x, gap_y = (np.full_like(widths, _WORD_GAP), heights) if places.kind == "words" else (widths / 2, heights / 2)
    grown = boxes + np.stack([-gap_x, -gap_y, gap_x, gap_y], axis=1)
    groups = [[number] for number in range(len(marked))]
    outer, inner = grown, boxes
    while True:
        joined = _joined(outer)
        if len(set(joined)) == len(groups):
            break
        merged = [np.flatnonzero(joined == group) for group in np.unique(joined)]
        groups = [[number for one in some for number in groups[one]] for some in merged]
        outer, inner = _around(outer, merged), _around(inner, merged)
    return [
        ((float(box[0]), float(box[1]), float(box[2]), float(box[3])), {marked[number] for number in group})
        for box, group in zip(inner, groups, strict=True)
    ]


def _joined(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Number boxes such that those that overlap, or are linked by others that do, have one number."""
    less = 1e-9  # edges that are equal but for rounding
    over = (boxes[:, None, 0] < boxes[None, :, 2] - less) & (boxes[:, None, 1] < boxes[None, :, 3] - less)
    over &= over.T
    numbers = np.arange(len(boxes))
    while True:
        least = np.where(over, numbers[None, :], len(boxes)).min(axis=1, initial=len(boxes))
        if (least >= numbers).all():
            return numbers
        numbers = np.minimum(numbers, least)


def _around(boxes: npt.NDArray[np.float64], groups: Sequence[npt.NDArray[np.intp]]) -> npt.NDArray[np.float64]:
    """Return the rectangle around the boxes of each group."""
    corners = [np.concatenate([boxes[some, :2].min(axis=0), boxes[some, 2:].max(axis=0)]) for some in groups]
    return np.array(corners).reshape(-1, 4)


def _inside(box: Box, words: Sequence[WordBox]) -> list[str]:
    """Return the words whose middle is in the rectangle."""
    left, top, right, bottom = box
    return [
        word.text
        for word in words
        if left <= (word.left + word.right) / 2 <= right and top <= (word.top + word.bottom) / 2 <= bottom
    ]
