"""What OCR read of a page image -> files named by the image's content, in the image folder and in the user's cache.

The image folder's go where it goes; the user's cache serves every reading on this machine. Knows nothing of the engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from llama_index_colqwen.images import write_atomically
from llama_index_colqwen.pages import WordBox

__all__ = ["Result", "read_once"]

Result: TypeAlias = tuple[list[WordBox], str]
"""Words with their boxes, and the text."""


def read_once(name: str, image_dir: str | Path | None, read: Callable[[], Result]) -> Result:
    """Return what is kept under a name, or read it; then it is kept in both places.

    A file that is damaged counts as none. A user's cache that cannot be read or written is no error.

    Args:
        name: Of the image's content and of what reads it.
        image_dir: The folder of page images, if there is one.
        read: Called where nothing is kept.

    Raises:
        OSError: If the image folder cannot be written.
    """
    in_image_dir = None if image_dir is None else Path(image_dir) / "ocr" / f"{name}.json"
    in_cache = _cache() / f"{name}.json"
    there, cached = _load(in_image_dir), _load(in_cache)
    result = there or cached or read()
    if in_image_dir is not None and there is None:
        _write(in_image_dir, result)
    if cached is None:
        with suppress(OSError):
            in_cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds the text of documents
            _write(in_cache, result)
    return result


def _cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("llama-index-colqwen") / "ocr"


def _load(path: Path | None) -> Result | None:
    if path is None:
        return None
    try:
        kept = json.loads(path.read_text("utf-8"))
        return [WordBox(*word) for word in kept["words"]], str(kept["text"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write(path: Path, result: Result) -> None:
    words, text = result
    rows = [(word.text, word.left, word.top, word.right, word.bottom) for word in words]
    write_atomically(path, json.dumps({"text": text, "words": rows}, ensure_ascii=False).encode())
