"""A pdfium page -> its words with boxes, its text.

Knows nothing of files, of how pages are drawn, or of OCR.
"""

from __future__ import annotations

import ctypes
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from typing import TYPE_CHECKING

from llama_index_colqwen.pages import WordBox, join_surrogates
from llama_index_colqwen.reading.words import TORN, split_words

if TYPE_CHECKING:
    import pypdfium2

__all__ = ["read_text_layer"]

# A generated line-end hyphen, which pdfium reports as one of these; the word goes on in the next line.
_LINE_HYPHENS = "\x02\ufffe"
_NOWHERE = (0.0, 0.0, 0.0, 0.0)  # the box of a word whose place a corrupt file has beyond all numbers

_EMPTY_AP = 2  # bytes: the zero at a string's end

_NOT_IN_WORDS = dict.fromkeys(map(ord, _LINE_HYPHENS + TORN))


def read_text_layer(page: pypdfium2.PdfPage, index: int) -> tuple[list[WordBox], str]:
    """Read a page's words with their boxes, in the order of the text, and its text.

    What was filled into forms and written on the page (free text, stamps) comes after the page's own text. For that,
    annotations become a part of the page, in memory: draw the page before. A text layer that is rubbish counts as none.

    Args:
        page: An open page; the caller holds pdfium's lock.
        index: The page's place in its document, from 0.
    """
    if not _flatten(page):
        return _read_characters(page)
    with closing(page.pdf[index]) as flattened:
        return _read_characters(flattened)


def _flatten(page: pypdfium2.PdfPage) -> bool:
    """Make annotations that hold text a part of the page, seen when it is loaded anew; say if there are any."""
    import pypdfium2.raw as pdfium

    holding = (pdfium.FPDF_ANNOT_WIDGET, pdfium.FPDF_ANNOT_FREETEXT, pdfium.FPDF_ANNOT_STAMP)
    found = False
    for number in reversed(range(pdfium.FPDFPage_GetAnnotCount(page))):
        annotation = pdfium.FPDFPage_GetAnnot(page, number)
        if not annotation:
            continue
        subtype = pdfium.FPDFAnnot_GetSubtype(annotation)
        appearance = pdfium.FPDFAnnot_GetAP(annotation, pdfium.FPDF_ANNOT_APPEARANCEMODE_NORMAL, None, 0)
        pdfium.FPDFPage_CloseAnnot(annotation)
        if appearance <= _EMPTY_AP:
            # It has nothing to be seen. Were it left, pdfium would end the process if its file promises something.
            pdfium.FPDFPage_RemoveAnnot(page, number)
        elif subtype in holding:
            found = True
    return found and bool(pdfium.FPDFPage_Flatten(page, pdfium.FLAT_NORMALDISPLAY) == pdfium.FLATTEN_SUCCESS)


def _read_characters(page: pypdfium2.PdfPage) -> tuple[list[WordBox], str]:
    import pypdfium2.raw as pdfium

    text_page = page.get_textpage()
    try:
        # The handle itself: a helper object is asked for it at every call, a thousand times a page.
        handle = text_page.raw
        codes = [pdfium.FPDFText_GetUnicode(handle, index) for index in range(text_page.count_chars())]
        if _is_rubbish(codes):
            return [], ""
        # One character of the string for one of pdfium's: positions in both are the same.
        characters, lines = split_words("".join(map(_character, codes)), text_page)
        locate = _Locator(page, text_page)
        words: list[WordBox] = []
        text: list[str] = []
        for line in lines:
            read: list[str] = []
            for start, stop in line:
                piece = characters[start:stop]
                # "applica\x02tions": two halves of a word on two lines. It is one word; its box is its first half's.
                if word := join_surrogates(piece.translate(_NOT_IN_WORDS)):
                    first_half = re.split(f"[{_LINE_HYPHENS}]", piece)[0] or piece
                    words.append(WordBox(word, *locate(start, start + len(first_half))))
                    read.append(word)
            text.append(" ".join(read))
    finally:
        text_page.close()
    return words, "\n".join(filter(None, text))


def _is_rubbish(codes: Sequence[int]) -> bool:
    """Say whether a fifth or more of what should be letters are none, for want of a map in their font."""
    counts = Counter(codes)
    rubbish = sum(count for code, count in counts.items() if _is_no_letter(code))
    letters = sum(count for code, count in counts.items() if code > ord(" ") and not _is_no_letter(code))
    return rubbish > 0 and 4 * rubbish >= letters


def _is_no_letter(code: int) -> bool:
    if code > sys.maxunicode or code == 0xFFFD:
        return True
    # What is 0 is read as a space, and \x02 and U+FFFE are hyphens.
    return code not in (0, 2, 9, 10, 13, 0xFFFE) and unicodedata.category(chr(code)) in ("Cc", "Co", "Cn")


@cache
def _character(code: int) -> str:
    """Return a code's character; broken fonts have codes that are no character's, and control codes for spaces."""
    if code > sys.maxunicode:
        return "\ufffd"
    character = chr(code)
    return " " if unicodedata.category(character) == "Cc" and character not in "\t\n\r\x02" else character


class _Locator:
    """Characters of a text page -> their box as fractions of the upright page."""

    def __init__(self, page: pypdfium2.PdfPage, text_page: pypdfium2.PdfTextPage) -> None:
        self._text_page = text_page.raw
        self._edges = tuple(ctypes.c_double() for _ in range(4))  # as pdfium gives them: left, right, bottom, top
        self._from_points = _page_matrix(page)

    def __call__(self, start: int, stop: int) -> tuple[float, float, float, float]:
        import pypdfium2.raw as pdfium

        left, right, bottom, top = self._edges
        lefts, rights, bottoms, tops = [], [], [], []
        for index in range(start, stop):
            pdfium.FPDFText_GetCharBox(self._text_page, index, left, right, bottom, top)
            lefts.append(left.value)
            rights.append(right.value)
            bottoms.append(bottom.value)
            tops.append(top.value)
        x0, y0 = self._to_page(min(lefts), min(bottoms))
        x1, y1 = self._to_page(max(rights), max(tops))
        box = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        return box if all(map(math.isfinite, box)) else _NOWHERE

    def _to_page(self, x: float, y: float) -> tuple[float, float]:
        a, b, c, d, e, f = self._from_points
        return a * x + c * y + e, b * x + d * y + f


def _page_matrix(page: pypdfium2.PdfPage) -> tuple[float, float, float, float, float, float]:
    """Return a, b, c, d, e, f of (a * x + c * y + e, b * x + d * y + f): points to fractions of the upright page."""
    import pypdfium2.raw as pdfium

    # pdfium answers in whole pixels of a bitmap that need not exist: 2^20 pixels wide and high, it is exact enough.
    side, points = 1 << 20, 1 << 10
    x, y = ctypes.c_int(), ctypes.c_int()

    def convert(*point: float) -> tuple[float, float]:
        pdfium.FPDF_PageToDevice(page.raw, 0, 0, side, side, 0, *point, x, y)
        return x.value / side, y.value / side

    (e, f), (right_x, right_y), (up_x, up_y) = convert(0, 0), convert(points, 0), convert(0, points)
    return (right_x - e) / points, (right_y - f) / points, (up_x - e) / points, (up_y - f) / points, e, f
