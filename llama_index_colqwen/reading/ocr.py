"""A page image -> its words and where they stand, by optical character recognition.

RapidOCR (PP-OCR models on onnxruntime; the weights are in its wheel, nothing is downloaded). Knows nothing of files.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Transpose

from llama_index_colqwen.concurrency import Lock, check_stopped
from llama_index_colqwen.errors import MissingDependencyError
from llama_index_colqwen.pages import WordBox

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ENGINE", "is_available", "read_words"]

ENGINE = "rapidocr-3"
"""Names what read the page; changes whenever the same image could be read differently, so that caches are renewed."""

# The longer side, in pixels, of what the engine sees: full recall on letter pages at half the time of 2000 pixels.
_MAX_SIDE = 1280

# A line that the engine is less sure of is noise, such as letters seen in a picture.
_MIN_CONFIDENCE = 0.5

# Of 40 scanned pages, the engine's mean confidence was .94 to 1 upright and .62 to .76 upside down.
_SURE = 0.85
_SAMPLE_LINES = 8  # the longest of a page, which tell whether it is upside down

_MOST_THREADS = 4
_CHECK_SECONDS = 0.2  # how long work that nobody wants any longer goes on

_LOCK = Lock()

_Result = TypeVar("_Result")


def is_available() -> bool:
    """Whether the `[ocr]` extra is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("rapidocr", "onnxruntime"))


def read_words(image: Image.Image) -> tuple[list[WordBox], str]:
    """Read a page image, also one that was scanned upside down; it ends at `check_stopped` and at Ctrl-C.

    Returns:
        Words in reading order with their boxes, and the text, a line a line: `text.split()` and the words correspond
        one to one. The engine locates lines; a word's box is its share of the line by letters.

    Raises:
        MissingDependencyError: If the `[ocr]` extra is not installed.
    """
    small = image.convert("RGB")
    small.thumbnail((_MAX_SIDE, _MAX_SIDE))
    lines = _find_lines(small)
    read = _read_lines(lines)
    turned = _is_upside_down(lines, read)
    if turned:
        lines = _find_lines(small.transpose(Transpose.ROTATE_180))
        read = _read_lines(lines)
    kept = [(line, text) for line, (text, sure) in zip(lines, read, strict=True) if text and sure >= _MIN_CONFIDENCE]
    words = [word for line, text in kept for word in _split_line(text, *line.box)]
    if turned:
        words = [WordBox(word.text, 1 - word.right, 1 - word.bottom, 1 - word.left, 1 - word.top) for word in words]
    return words, "\n".join(text for _, text in kept)


_Reading: TypeAlias = tuple[str, float]
"""What a line says, and how sure the engine is of it, 0 to 1."""


@dataclass(frozen=True)
class _Line:
    """A line of text: its box (left, top, right, bottom) as fractions of the image, and its pixels, BGR."""

    box: tuple[float, float, float, float]
    pixels: NDArray[np.uint8]


def _find_lines(image: Image.Image) -> list[_Line]:
    """Find lines, in reading order."""
    (engine,) = _in_threads([_load_engine])
    pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
    (corners,) = _in_threads([partial(_find_corners, engine, pixels)])
    if corners is None:
        return []
    crops = engine.crop_text_regions(pixels, corners)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1) / (image.size * 2)
    return [_Line(tuple(box), crop) for box, crop in zip(boxes.tolist(), crops, strict=True)]


def _find_corners(engine: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32] | None:  # noqa: ANN401
    with _LOCK:  # the call sets what the engine is to do
        # The orientation classifier turns upright pages upside down more often than it helps.
        corners = engine(pixels, use_det=True, use_cls=False, use_rec=False).boxes
    return None if corners is None else np.asarray(corners, dtype=np.float32)


def _read_lines(lines: Sequence[_Line]) -> list[_Reading]:
    def read(line: _Line) -> _Reading:
        # One at a time: lines of several lengths that are read together are all padded to the longest.
        found = _engine(os.getpid()).recognize_txt([line.pixels])
        return " ".join(found.txts[0].split()), float(found.scores[0])

    return _in_threads([partial(read, line) for line in lines])


def _is_upside_down(lines: Sequence[_Line], read: Sequence[_Reading]) -> bool:
    if _confidence(read) >= _SURE:
        return False
    longest = sorted(range(len(lines)), key=lambda number: -lines[number].pixels.shape[1])[:_SAMPLE_LINES]
    turned = _read_lines([replace(lines[number], pixels=np.rot90(lines[number].pixels, 2)) for number in longest])
    return _confidence(turned) > _confidence([read[number] for number in longest])


def _confidence(read: Sequence[_Reading]) -> float:
    """Say how sure the engine is, weighted by letters; 0 where there are none."""
    return sum(len(text) * sure for text, sure in read) / max(sum(len(text) for text, _ in read), 1)


def _in_threads(tasks: Sequence[Callable[[], _Result]]) -> list[_Result]:
    """Do the engine's work in its threads, so that this one hears Ctrl-C; what has not begun then never does."""
    futures = [_threads(os.getpid()).submit(task) for task in tasks]
    try:
        results = []
        for future in futures:
            check_stopped()
            while not wait([future], timeout=_CHECK_SECONDS).done:
                check_stopped()
            results.append(future.result())
        return results
    finally:
        for future in futures:
            future.cancel()


def _split_line(line: str, left: float, top: float, right: float, bottom: float) -> list[WordBox]:
    width = (right - left) / len(line)
    words: list[WordBox] = []
    start = 0
    for word in line.split(" "):
        words.append(WordBox(word, left + start * width, top, left + (start + len(word)) * width, bottom))
        start += len(word) + 1
    return words


def _load_engine() -> Any:  # noqa: ANN401
    with _LOCK:
        return _engine(os.getpid())


# One for each process: a fork's copy waits for threads of the parent. It is not freed either, which would wait as well.
@cache
def _engine(process: int) -> Any:  # noqa: ANN401 - rapidocr is untyped and optional
    # onnxruntime 1.32 reports its use to Microsoft where nobody says no, by threads that a forked process waits for in
    # vain when it ends. Read when it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise MissingDependencyError("Reading scanned pages needs OCR", "ocr") from error
    return RapidOCR(
        params={
            "Global.log_level": "error",
            # The threads are `_threads`: the runtime's own take a third more CPU, in waiting for one another.
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        }
    )


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    from loky import cpu_count

    # A worker process is one of as many as there are cores.
    number = 1 if multiprocessing.parent_process() else min(cpu_count(), _MOST_THREADS)
    return ThreadPoolExecutor(number, thread_name_prefix="colqwen-ocr")
