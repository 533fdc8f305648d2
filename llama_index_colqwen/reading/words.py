"""Characters of a text layer -> lines of words, by where the characters stand.

Scanners and typesetters place letters one by one. Then a text layer has spaces and line ends within words: pdfium
guesses them from distances, or the file itself says so.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pypdfium2

__all__ = ["TORN", "split_words"]

TORN = "\0"
"""Stands for white space that does not belong there."""

# Distances are in ems: a font's height.
_TOUCHING = 0.03  # letters of a word that do not stand apart, more or less
_DOUBTFUL = 0.08  # the narrowest space between words is wider
_SAME_LINE = 0.3  # how far two characters of a line may stand one above the other
_NEXT_WORD = 1.5  # turned words further apart do not follow one another
_LETTER_SPACED = (0.08, 0.6)  # letters that usually stand so far apart are spaced out, as in titles
_SPACED_IDEOGRAPHS = (0.0, 0.8)  # further apart they may be names, or a table's cells
_WORD_SPACED = 1.8  # times as far as usual, and another word begins
_NEXT_BELOW = (0.7, 1.3)  # from one character of a vertical line to the next

# Chinese and Japanese, which are written without spaces; Korean has them.
_CJK = "[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_SPACED_CJK = re.compile(rf"(?<!\S){_CJK}(?:[^\S\n]+{_CJK}){{2,}}(?!\S)")
_STACKED_CJK = re.compile(rf"(?<!\S){_CJK}(?:\s+{_CJK}){{2,}}(?!\S)")


def split_words(characters: str, text_page: pypdfium2.PdfTextPage) -> tuple[str, list[list[tuple[int, int]]]]:
    """Return the characters with `TORN` where white space tore a word, and for every line, where its words are in them.

    Args:
        characters: One for each that pdfium counts on the page.
        text_page: They are there; the caller holds pdfium's lock.
    """
    glyphs = _Glyphs(text_page)
    corrected = list(characters)
    for find in (_touching, _across_line_ends, _spaced_out, _stacked):
        for start, stop, space in find(characters, glyphs):
            corrected[start:stop] = space * (stop - start)
    whole = "".join(corrected)
    lines = []
    for line in re.finditer(r"[^\n]+", whole):
        words = [(line.start() + word.start(), line.start() + word.end()) for word in re.finditer(r"\S+", line.group())]
        # What stands upside down, pdfium reads from the left of the page, a word at a time.
        if (
            len(words) > 1
            and glyphs[words[0][0]].quarters == 2
            and glyphs[words[0][0]].ahead_of(glyphs[words[1][0]]) < 0
        ):
            words.reverse()
        if words:
            lines.append(words)
    return whole, lines


_Corrections = Iterator[tuple[int, int, str]]
"""From which character to which one what stands, for each."""


def _touching(characters: str, glyphs: _Glyphs) -> _Corrections:
    """Find spaces between letters that touch, unless the page's boxes are too inexact to say so."""
    touching: list[tuple[int, int]] = []
    doubtful = 0
    for space in re.finditer(r"(?<=\w)[^\S\n]+(?=\w|[.,;:!?)]\s)", characters):
        before, after = space.start() - 1, space.end()
        if glyphs.clearly_apart(before, after):
            continue
        neighbours = [(before, after)]  # letters of one word may overlap, in italics or where widths are not known
        if before and characters[before - 1].isalnum():
            neighbours.append((before - 1, before))
        if characters[after + 1 : after + 2].isalnum():
            neighbours.append((after, after + 1))
        gap, *usual = (glyphs[one].ahead_of(glyphs[other]) for one, other in neighbours)
        relative = gap - min([0.0, *usual])
        if abs(relative) < _TOUCHING:
            touching.append(space.span())
        elif relative < _DOUBTFUL:
            doubtful += 1
    if 4 * doubtful <= len(touching):
        yield from ((*span, TORN) for span in touching)


def _across_line_ends(characters: str, glyphs: _Glyphs) -> _Corrections:
    """Find line ends that are none: within words, and between words that are turned."""
    for end in re.finditer(r"(?<=\S)[^\S\n]*\n\s*(?=\S)", characters):
        before, after = glyphs[end.start() - 1], glyphs[end.end()]
        if before.quarters is None or before.quarters != after.quarters or before.beside(after) > _SAME_LINE:
            continue
        gap = before.ahead_of(after)
        if -_SAME_LINE < gap < _DOUBTFUL:
            yield *end.span(), TORN
        elif before.quarters and 0 < gap < _NEXT_WORD:
            yield *end.span(), " "


def _spaced_out(characters: str, glyphs: _Glyphs) -> _Corrections:
    """Find spaces within words whose letters stand apart: of a title, or of Chinese and Japanese."""
    for line in re.finditer(r"[^\n]+", characters):
        words = line.group().split()
        short = [word for word in words if len(word) < 3]
        if 2 * len(short) >= len(words) and sum(len(word) == 1 and word.isalpha() for word in short) > 1:
            yield from _within_words(line, glyphs, _LETTER_SPACED)
    for run in _SPACED_CJK.finditer(characters):
        yield from _within_words(run, glyphs, _SPACED_IDEOGRAPHS)


def _within_words(line: re.Match[str], glyphs: _Glyphs, spaced: tuple[float, float]) -> _Corrections:
    letters = [line.start() + match.start() for match in re.finditer(r"\S", line.group())]
    pairs = list(zip(letters, letters[1:], strict=False))
    gaps = [glyphs[one].ahead_of(glyphs[other]) for one, other in pairs]
    usual = median(gaps)
    within = min((gap for (one, other), gap in zip(pairs, gaps, strict=True) if other == one + 1), default=usual)
    if spaced[0] <= within and usual <= spaced[1]:
        for (one, other), gap in zip(pairs, gaps, strict=True):
            if other > one + 1 and gap < _WORD_SPACED * usual:
                yield one + 1, other, TORN


def _stacked(characters: str, glyphs: _Glyphs) -> _Corrections:
    """Find line ends between Chinese and Japanese characters that stand one below the other."""
    for run in _STACKED_CJK.finditer(characters):
        for end in re.finditer(r"\s*\n\s*", run.group()):
            start, stop = run.start() + end.start(), run.start() + end.end()
            if glyphs[start - 1].stands_on(glyphs[stop]):
                yield start, stop, TORN


@dataclass(frozen=True)
class _Glyph:
    """A character's box, as wide as itself and as high as its font, in points, and how far it is turned."""

    left: float
    bottom: float
    right: float
    top: float
    quarters: int | None
    """Quarter turns, clockwise; None if it is turned by anything else."""

    @property
    def em(self) -> float:
        return (self.right - self.left if self.quarters in (1, 3) else self.top - self.bottom) or math.inf

    def ahead_of(self, other: _Glyph) -> float:
        """How far another character stands ahead in the direction of the text, from edge to edge."""
        edges = {
            0: other.left - self.right,
            1: self.bottom - other.top,
            2: self.left - other.right,
            3: other.bottom - self.top,
        }
        return edges[self.quarters or 0] / max(self.em, other.em)

    def beside(self, other: _Glyph) -> float:
        """How far another character stands from this one's line."""
        if self.quarters in (1, 3):
            return abs(other.left + other.right - self.left - self.right) / 2 / max(self.em, other.em)
        return abs(other.top + other.bottom - self.top - self.bottom) / 2 / max(self.em, other.em)

    def stands_on(self, lower: _Glyph) -> bool:
        """Whether another character is the next one below, in a vertical line."""
        em = max(self.right - self.left, lower.right - lower.left)  # these characters are as wide as their font is high
        x, y = lower.left + lower.right - self.left - self.right, self.top + self.bottom - lower.top - lower.bottom
        return abs(x) / 2 < _SAME_LINE * em and _NEXT_BELOW[0] * em < y / 2 < _NEXT_BELOW[1] * em


class _Glyphs:
    """The characters of a page, by number."""

    def __init__(self, text_page: pypdfium2.PdfTextPage) -> None:
        import pypdfium2.raw as pdfium

        self._handle, self._one, self._other = text_page.raw, pdfium.FS_RECTF(), pdfium.FS_RECTF()

    def __getitem__(self, index: int) -> _Glyph:
        import pypdfium2.raw as pdfium

        box = self._one
        pdfium.FPDFText_GetLooseCharBox(self._handle, index, ctypes.byref(box))
        quarters = pdfium.FPDFText_GetCharAngle(self._handle, index) / (math.pi / 2)
        # A corrupt file's numbers may come to no angle.
        turned = round(quarters) % 4 if math.isfinite(quarters) and abs(quarters - round(quarters)) < 0.05 else None
        return _Glyph(box.left, box.bottom, box.right, box.top, turned)

    def clearly_apart(self, index: int, next_index: int) -> bool:
        """Whether a word begins between two characters, or they are not upright on one line; asked for every space."""
        import pypdfium2.raw as pdfium

        one, other = self._one, self._other
        pdfium.FPDFText_GetLooseCharBox(self._handle, index, ctypes.byref(one))
        pdfium.FPDFText_GetLooseCharBox(self._handle, next_index, ctypes.byref(other))
        em = one.top - one.bottom
        touch = -_SAME_LINE * em < other.left - one.right < _DOUBTFUL * em
        return not touch or abs(other.top - one.top) > _SAME_LINE * em
