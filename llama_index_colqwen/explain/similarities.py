"""A query's vectors and a page's -> what each query token matches, and its share of the MaxSim score.

Numpy alone. Knows nothing of embedders, stores or pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from llama_index_colqwen.late_interaction.multivectors import MultiVector, PatchGrid
from llama_index_colqwen.pages import WordBox

__all__ = ["NO_WORD", "Box", "Floats", "Places", "TokenMatch", "heat", "match_tokens", "patches", "words"]

Floats: TypeAlias = npt.NDArray[np.floating]

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the page, from its top left."""

NO_WORD = "(no word)"
"""What tokens are called that stand for nothing, such as a model's padding."""

# A word of the question that the page lacks still has a nearest word, by chance: of 200 normal numbers, the largest is
# 3 standard deviations.
_CLEAR, _CLEAR_AMONG = 5.0, 20


@dataclass(frozen=True)
class Places:
    """The parts of a page that its vectors stand for.

    Attributes:
        kind: "patches", equal parts of the image that a visual model saw; or "words".
        boxes: Where they are: shape (num_places, 4), a `Box` a row.
        rows: With `of`, which of the page's vectors stand for which places: shape (num_pairs,). A vector may stand for
            several words, and several vectors for parts of one ("salt-spray").
        of: The places of `rows`: shape (num_pairs,).
        grid: How patches lie.
    """

    kind: Literal["patches", "words"]
    boxes: npt.NDArray[np.float64] = field(repr=False)
    rows: npt.NDArray[np.intp] = field(repr=False)
    of: npt.NDArray[np.intp] = field(repr=False)
    grid: PatchGrid | None = None


@dataclass(frozen=True)
class TokenMatch:
    """A token of the query, and what it matches on a page.

    Attributes:
        text: What it stands for, such as a word or a part of one.
        share: Its part of the page's score: its largest similarity with any of the page's vectors.
        is_word: Whether it stands for something that was asked: False for punctuation, and for what models add to
            a query (a prefix, padding).
        is_clear: Whether it matches a place of the page: a patch, or a word that is the same or too like it for chance.
        places: Which places won, as indexes into `Explanation.boxes`: one patch, or a word wherever it stands. Empty if
            the vector that won is of no place, such as of the model's prompt or the file's name.
        similarities: With each place; float32, shape (num_places,).
    """

    text: str
    share: float
    is_word: bool
    is_clear: bool
    places: list[int]
    similarities: npt.NDArray[np.float32] = field(repr=False, compare=False)


def patches(grid: PatchGrid) -> Places:
    """Return the patches of a page, line by line."""
    numbers = np.arange(grid.rows * grid.columns)
    lines, columns = np.divmod(numbers, grid.columns)
    corners = (columns / grid.columns, lines / grid.rows, (columns + 1) / grid.columns, (lines + 1) / grid.rows)
    return Places("patches", np.stack(corners, axis=1), grid.start + numbers, numbers, grid)


def words(boxes: Sequence[WordBox], of_rows: Sequence[Sequence[int]]) -> Places:
    """Return the words of a page.

    Args:
        boxes: Where they stand.
        of_rows: For each of the page's vectors, the words that it stands for, as indexes into `boxes`.
    """
    pairs = np.array([(row, number) for row, numbers in enumerate(of_rows) for number in numbers], dtype=np.intp)
    rows, of = pairs.reshape(-1, 2).T
    corners = [(box.left, box.top, box.right, box.bottom) for box in boxes]
    return Places("words", np.array(corners, dtype=np.float64).reshape(-1, 4), rows, of)


def match_tokens(
    query: MultiVector, page: MultiVector, names: Sequence[str], is_word: Sequence[bool], places: Places | None
) -> list[TokenMatch]:
    """Compare every token of a query with every vector of a page.

    Args:
        query: Float32, shape (num_query_tokens, dim).
        page: Float32, shape (num_tokens, dim).
        names: What the query's tokens stand for.
        is_word: See `TokenMatch`.
        places: Of the page; None if it is not known where its vectors lie.
    """
    similarities = query @ page.T
    found = []
    for name, word, of_rows in zip(names, is_word, similarities, strict=True):
        winner = int(of_rows.argmax())
        won: list[int] = [] if places is None else places.of[places.rows == winner].tolist()
        clear = bool(won) and (places is None or places.kind == "patches" or _stands_out(of_rows, winner))
        found.append(TokenMatch(name, float(of_rows[winner]), word, clear, won, _of_places(of_rows, places)))
    return found


def _of_places(similarities: npt.NDArray[np.float32], places: Places | None) -> npt.NDArray[np.float32]:
    """Return similarities with places: the largest of a place's vectors, 0 where it has none."""
    if places is None:
        return np.empty(0, dtype=np.float32)
    found = np.full(len(places.boxes), -np.inf, dtype=np.float32)
    np.maximum.at(found, places.of, similarities[places.rows])
    found[np.isneginf(found)] = 0
    return found


def _stands_out(similarities: Floats, winner: int) -> bool:
    others = np.delete(similarities, winner)
    if len(others) < _CLEAR_AMONG:
        return False
    deviation = float(np.median(np.abs(others))) / 0.6745  # of normal numbers around 0
    return float(similarities[winner]) > _CLEAR * deviation


def heat(tokens: Sequence[TokenMatch], kind: str, token: int | None = None) -> Floats:
    """Say how much places stand out, for a token or for the whole query: from 0 to 1, shape (num_places,).

    For a token, 1 is where the query's clearest token stands out most: what a token matches no better than the rest of
    the page stays dark. For the whole query, it is the sum over what was asked.
    """
    lifts = np.stack([_lift(match, kind) for match in tokens])
    asked = np.array([match.is_word for match in tokens])
    chosen = lifts[asked] if asked.any() else lifts
    values = chosen.sum(axis=0) if token is None else lifts[token]
    most = max(float((values if token is None else chosen).max(initial=0.0)), float(values.max(initial=0.0)))
    return values / most if most > 0 else np.zeros_like(values)


def _lift(match: TokenMatch, kind: str) -> Floats:
    """Say how far places stand out for a token.

    Patches, above the usual similarity of the page. Words, which are unlike in general, above 0: those that the token
    is, or that are at least half as like it; the others are so by chance.
    """
    if kind == "patches":
        above: Floats = np.maximum(match.similarities - np.median(match.similarities), 0)
        return above
    like = match.similarities >= match.similarities.max(initial=0) / 2
    return np.where(like & match.is_clear, np.maximum(match.similarities, 0), 0)
