"""Encoded page images -> files named by their content.

Knows nothing of LlamaIndex or Milvus.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

from llama_index_colqwen.pages import PageImage

__all__ = ["image_sha256", "write_page_image"]

_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/tiff": ".tiff"}


def image_sha256(data: bytes) -> str:
    """Return the sha256 of an encoded image, in hex."""
    return hashlib.sha256(data).hexdigest()


def write_page_image(image_dir: str | Path, document_id: str, page_number: int, image: PageImage) -> Path:
    """Write a page image once; the same image again is not written again.

    Returns:
        The absolute path, `<image_dir>/<document>/page-0001-<image's sha256>.jpg`.
    """
    # Ids are sha256 for what the reader made, but may be anything for nodes of other origin.
    folder = document_id[:16] if document_id.isalnum() else hashlib.sha256(document_id.encode()).hexdigest()[:16]
    name = f"page-{page_number:04d}-{image_sha256(image.data)[:16]}{_SUFFIXES.get(image.mimetype, '.img')}"
    path = Path(image_dir).resolve() / folder / name
    if not path.exists():
        write_atomically(path, image.data)
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that an interrupted or concurrent writer never leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's: those are private to their owner, and page images are as readable as any file made here.
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
