"""A pdfium page -> its words with boxes, its text.

Knows nothing of files, of how pages are drawn, or of OCR.
"""

from __future__ import annotations

import ctypes
import re
from typing import TYPE_CHECKING

from llama_index_colqwen.pages import WordBox

if TYPE_CHECKING:
    import pypdfium2

__all__ = ["read_text_layer"]

# A generated line-end hyphen, which pdfium reports as one of these; the word goes on in the next line.
_LINE_HYPHENS = "\x02\ufffe"


def read_text_layer(page: pypdfium2.PdfPage) -> tuple[list[WordBox], str]:
    """Read a page's words with their boxes, in the order of the text, and its text; the caller holds pdfium's lock."""
    import pypdfium2.raw as pdfium

    text_page = page.get_textpage()
    try:
        # The handle itself: a helper object is asked for it at every call, a thousand times a page.
        handle = text_page.raw
        codes = [pdfium.FPDFText_GetUnicode(handle, index) for index in range(text_page.count_chars())]
        # One character of the string for one of pdfium's: positions in both are the same.
        characters = "".join(chr(code) if code else " " for code in codes)
        locate = _Locator(page, text_page)
        words: list[WordBox] = []
        pieces: list[str] = []
        for match in re.finditer(r"\S+|\s+", characters):
            piece = match.group()
            if piece.isspace():
                pieces.append("\n" if "\n" in piece else " ")
                continue
            # "applica\x02tions": two halves of a word on two lines. It is one word; its box is its first half's.
            word = _join_surrogates(piece.translate({ord(hyphen): None for hyphen in _LINE_HYPHENS}))
            first_half = re.split(f"[{_LINE_HYPHENS}]", piece)[0] or piece
            if not word:
                continue
            words.append(WordBox(word, *locate(match.start(), match.start() + len(first_half))))
            pieces.append(word)
        text = "".join(pieces).strip()
    finally:
        text_page.close()
    return words, text


def _join_surrogates(text: str) -> str:
    """Letters beyond 16 bits come as two halves; a half without its other one is no letter."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _Locator:
    """Characters of a text page -> their box as fractions of the upright page."""

    # PageToDevice answers in whole pixels of an imagined bitmap: this many make it precise.
    _UNITS = 1 << 16

    def __init__(self, page: pypdfium2.PdfPage, text_page: pypdfium2.PdfTextPage) -> None:
        self._page = page.raw
        self._text_page = text_page.raw

    def __call__(self, start: int, stop: int) -> tuple[float, float, float, float]:
        import pypdfium2.raw as pdfium

        char_left, char_bottom, char_right, char_top = (ctypes.c_double() for _ in range(4))
        lefts, rights, bottoms, tops = [], [], [], []
        for index in range(start, stop):
            pdfium.FPDFText_GetCharBox(self._text_page, index, char_left, char_right, char_bottom, char_top)
            lefts.append(char_left.value)
            rights.append(char_right.value)
            bottoms.append(char_bottom.value)
            tops.append(char_top.value)
        left, right, bottom, top = min(lefts), max(rights), min(bottoms), max(tops)
        corners = [self._to_page(left, bottom), self._to_page(right, top)]
        (x0, y0), (x1, y1) = corners
        return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)

    def _to_page(self, x: float, y: float) -> tuple[float, float]:
        import pypdfium2.raw as pdfium

        device_x, device_y = ctypes.c_int(), ctypes.c_int()
        pdfium.FPDF_PageToDevice(self._page, 0, 0, self._UNITS, self._UNITS, 0, x, y, device_x, device_y)
        return device_x.value / self._UNITS, device_y.value / self._UNITS
