"""A page that was read before -> what only its file knows: its image again, and its size in points."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from llama_index_colqwen.errors import ColQwenError
from llama_index_colqwen.images import encode_image, write_atomically
from llama_index_colqwen.pages import Page, RenderedPage
from llama_index_colqwen.reading.office import OFFICE_SUFFIXES
from llama_index_colqwen.reading.pdf import PdfJob, page_size
from llama_index_colqwen.reading.rendering import render_document

__all__ = ["draw_again", "size_in_points"]

_LOGGER = logging.getLogger(__name__)


def draw_again(page: Page) -> bool:
    """Draw a page where its image was, at the default size; say whether that could be done.

    It can if the PDF or image that it is a page of is where it was, and is unchanged. Office documents are not
    converted again for one page.
    """
    source = _source(page)
    if page.image_path is None or source.suffix.lower() in OFFICE_SUFFIXES:
        return False
    index = page.page_number - 1
    try:
        if not _is_unchanged(page, source):
            return False
        for drawn in render_document(source, source.name, extract_text=False, pages=range(index, index + 1)):
            if isinstance(drawn, RenderedPage) and drawn.page_number == page.page_number:
                write_atomically(Path(page.image_path), encode_image(drawn.image).data)
                return True
    except (OSError, ColQwenError) as error:
        _LOGGER.info("Page %s cannot be drawn again: %s", page.page_id, error)
    return False


def size_in_points(page: Page) -> tuple[float, float] | None:
    """Return the width and height of a page of a PDF, in points, as it is shown: turned and cropped.

    Returns:
        None for what is no PDF, or one that is encrypted, gone or changed.
    """
    source = _source(page)
    if source.suffix.lower() != ".pdf":
        return None
    try:
        if _is_unchanged(page, source):
            return page_size(PdfJob(source, source.name, "pdfium", None, 0), page.page_number - 1)
    except (OSError, ColQwenError) as error:
        _LOGGER.info("The size of page %s is not known: %s", page.page_id, error)
    return None


def _source(page: Page) -> Path:
    return Path(str(page.node.get("metadata", {}).get("file_path")))


def _is_unchanged(page: Page, source: Path) -> bool:
    return hashlib.sha256(source.read_bytes()).hexdigest() == page.document_id
