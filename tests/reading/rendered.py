"""Pages that have to be there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_index_colqwen.errors import DocumentError
from llama_index_colqwen.pages import RenderedPage
from llama_index_colqwen.reading.rendering import render_document


def render_pages(source: Path | bytes, name: str, **options: Any) -> Iterator[RenderedPage]:  # noqa: ANN401
    """Render a document; the error that is in a page's place is raised."""
    for page in render_document(source, name, **options):
        if isinstance(page, DocumentError):
            raise page
        yield page
