"""A page image -> its words and where they stand, by optical character recognition.

RapidOCR (PP-OCR models on onnxruntime; the weights are in its wheel, nothing is downloaded). Knows nothing of files.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Transpose

from llama_index_colqwen.concurrency import Lock
from llama_index_colqwen.errors import MissingDependencyError
from llama_index_colqwen.pages import WordBox

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ENGINE", "is_available", "read_words"]

ENGINE = "rapidocr-1"
"""Names what read the page; changes whenever the same image could be read differently, so that caches are renewed."""

# The longer side, in pixels, of what the engine sees: full recall on letter pages at half the time of 2000 pixels.
_MAX_SIDE = 1280

# On 40 scanned pages the engine's mean confidence was .94 to 1 upright and .62 to .76 upside down.
_SURE = 0.85

_LOCK = Lock()


def is_available() -> bool:
    """Whether the `[ocr]` extra is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("rapidocr", "onnxruntime"))


def read_words(image: Image.Image) -> tuple[list[WordBox], str]:
    """Read a page image, about 2 s a page on one core; a page that was scanned upside down takes twice as long.

    Returns:
        Words in reading order with their boxes, and the text, a line a line: `text.split()` and the words correspond
        one to one. The engine locates lines; a word's box is its share of the line by letters.

    Raises:
        MissingDependencyError: If the `[ocr]` extra is not installed.
    """
    small = image.convert("RGB")
    small.thumbnail((_MAX_SIDE, _MAX_SIDE))
    upright = _read(small)
    if not upright.lines or upright.confidence >= _SURE:
        return _words(upright, turned=False)
    upside_down = _read(small.transpose(Transpose.ROTATE_180))
    if upside_down.confidence > upright.confidence:
        return _words(upside_down, turned=True)
    return _words(upright, turned=False)


@dataclass(frozen=True)
class _Reading:
    """Lines of text, each with its box as fractions of the image, and how sure the engine is, weighted by letters."""

    lines: list[tuple[str, tuple[float, float, float, float]]]
    confidence: float


def _read(image: Image.Image) -> _Reading:
    with _LOCK:
        found = _engine(os.getpid())(np.asarray(image)[:, :, ::-1])  # the engine expects BGR
    lines: list[tuple[str, tuple[float, float, float, float]]] = []
    sure = letters = 0.0
    if found.txts is None or found.boxes is None:
        return _Reading(lines, 0.0)
    for corners, line, score in zip(found.boxes, found.txts, found.scores, strict=True):
        if not line.split():
            continue
        box = np.asarray(corners, dtype=np.float64) / image.size
        (left, top), (right, bottom) = box.min(axis=0).tolist(), box.max(axis=0).tolist()
        lines.append((" ".join(line.split()), (left, top, right, bottom)))
        sure += len(line) * score
        letters += len(line)
    return _Reading(lines, sure / letters if letters else 0.0)


def _words(reading: _Reading, *, turned: bool) -> tuple[list[WordBox], str]:
    words = [word for line, box in reading.lines for word in _split_line(line, *box)]
    if turned:
        words = [WordBox(word.text, 1 - word.right, 1 - word.bottom, 1 - word.left, 1 - word.top) for word in words]
    return words, "\n".join(line for line, _ in reading.lines)


def _split_line(line: str, left: float, top: float, right: float, bottom: float) -> list[WordBox]:
    width = (right - left) / len(line)
    words: list[WordBox] = []
    start = 0
    for word in line.split(" "):
        words.append(WordBox(word, left + start * width, top, left + (start + len(word)) * width, bottom))
        start += len(word) + 1
    return words


# One for each process: a fork's copy waits for threads of the parent. It is not freed either, which would wait as well.
@cache
def _engine(process: int) -> Any:  # noqa: ANN401 - rapidocr is untyped and optional
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise MissingDependencyError("Reading scanned pages needs OCR", "ocr") from error
    # The orientation classifier turns upright pages upside down more often than it helps; /Rotate is applied already.
    return RapidOCR(params={"Global.use_cls": False, "Global.log_level": "error"})
