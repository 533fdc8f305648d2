"""`colqwen search --explain DIR`: pages that were found -> pictures of what matches on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_index_colqwen.cli.console import stderr
from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError, UnreadableDocumentError

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

    from llama_index_colqwen.index import ColQwenIndex

__all__ = ["write_explanations"]


def write_explanations(index: ColQwenIndex, question: str, hits: Sequence[NodeWithScore], folder: Path) -> None:
    """Write a picture and an HTML file for each page, named by rank, file and page: `01-report-p3.jpg`.

    A page whose image is gone has no picture, which is said.

    Raises:
        OSError: If the folder cannot be written.
    """
    from rich.markup import escape

    folder.mkdir(parents=True, exist_ok=True)
    for rank, hit in enumerate(hits, start=1):
        explanation = index.explain(question, hit)
        # What every file system takes, of any name.
        stem = re.sub(r"[^\w-]+", "_", Path(explanation.page.file_name).stem)[:80]
        path = folder / f"{rank:02d}-{stem}-p{explanation.page.page_number}"
        Path(f"{path}.html").write_text(explanation.to_html(), "utf-8")
        try:
            explanation.to_image().save(f"{path}.jpg", quality=90)
        except (DocumentNotFoundError, UnreadableDocumentError, InvalidOptionError) as error:
            stderr().print(f"[yellow]Note:[/] {escape(str(error))}")
    stderr().print(f"What matches is shown in {escape(str(folder))}.")
