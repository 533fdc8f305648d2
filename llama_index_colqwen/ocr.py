"""A page image -> its words and where they stand, by optical character recognition.

RapidOCR (PP-OCR models on onnxruntime; the weights are in its wheel, nothing is downloaded). Knows nothing of files.
"""

from __future__ import annotations

import importlib.util
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_index_colqwen.errors import MissingDependencyError
from llama_index_colqwen.pages import WordBox

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ENGINE", "is_available", "read_words"]

ENGINE = "rapidocr-1"
"""Names what read the page; changes whenever the same image could be read differently, so that caches are renewed."""

# The longer side, in pixels, of what the engine sees: full recall on letter pages at half the time of 2000 pixels.
_MAX_SIDE = 1280

_LOCK = threading.Lock()


def is_available() -> bool:
    """Whether the `[ocr]` extra is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("rapidocr", "onnxruntime"))


def read_words(image: Image.Image) -> tuple[list[WordBox], str]:
    """Read a page image, about 1.6 s a page on one core.

    Returns:
        Words in reading order with their boxes, and the text, a line a line: `text.split()` and the words correspond
        one to one. The engine locates lines; a word's box is its share of the line by letters.

    Raises:
        MissingDependencyError: If the `[ocr]` extra is not installed.
    """
    small = image.convert("RGB")
    small.thumbnail((_MAX_SIDE, _MAX_SIDE))
    with _LOCK:
        found = _engine()(np.asarray(small)[:, :, ::-1])  # the engine expects BGR
    words: list[WordBox] = []
    lines: list[str] = []
    if found.txts is None or found.boxes is None:
        return words, ""
    for corners, line in zip(found.boxes, found.txts, strict=True):
        if not line.split():
            continue
        xs, ys = np.asarray(corners)[:, 0] / small.width, np.asarray(corners)[:, 1] / small.height
        words.extend(_split_line(line, float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())))
        lines.append(" ".join(line.split()))
    return words, "\n".join(lines)


def _split_line(line: str, left: float, top: float, right: float, bottom: float) -> list[WordBox]:
    letters = " ".join(line.split())
    width = (right - left) / len(letters)
    words: list[WordBox] = []
    start = 0
    for word in letters.split(" "):
        words.append(WordBox(word, left + start * width, top, left + (start + len(word)) * width, bottom))
        start += len(word) + 1
    return words


@lru_cache(maxsize=1)
def _engine() -> Any:  # noqa: ANN401 - rapidocr is untyped and optional
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise MissingDependencyError("Reading scanned pages needs OCR", "ocr") from error
    # The orientation classifier turns upright pages upside down more often than it helps; /Rotate is applied already.
    return RapidOCR(params={"Global.use_cls": False, "Global.log_level": "error"})
