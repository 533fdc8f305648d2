"""A page whose image file is gone -> the file again, drawn from the document."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from llama_index_colqwen.errors import ColQwenError
from llama_index_colqwen.images import encode_image, write_atomically
from llama_index_colqwen.pages import Page, RenderedPage
from llama_index_colqwen.reading.office import OFFICE_SUFFIXES
from llama_index_colqwen.reading.rendering import render_document

__all__ = ["draw_again"]

_LOGGER = logging.getLogger(__name__)


def draw_again(page: Page) -> bool:
    """Draw a page where its image was, at the default size; say whether that could be done.

    It can if the PDF or image that it is a page of is where it was, and is unchanged. Office documents are not
    converted again for one page.
    """
    source = Path(str(page.node.get("metadata", {}).get("file_path")))
    if page.image_path is None or source.suffix.lower() in OFFICE_SUFFIXES:
        return False
    index = page.page_number - 1
    try:
        if hashlib.sha256(source.read_bytes()).hexdigest() != page.document_id:
            return False
        for drawn in render_document(source, source.name, extract_text=False, pages=range(index, index + 1)):
            if isinstance(drawn, RenderedPage) and drawn.page_number == page.page_number:
                write_atomically(Path(page.image_path), encode_image(drawn.image).data)
                return True
    except (OSError, ColQwenError) as error:
        _LOGGER.info("Page %s cannot be drawn again: %s", page.page_id, error)
    return False
