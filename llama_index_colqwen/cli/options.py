"""Options that several commands have: which collection, on which Milvus, which of its pages, printed how."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = [
    "AsJson",
    "CollectionName",
    "Embedder",
    "File",
    "Filter",
    "ImageDir",
    "LlmMaxPixels",
    "LlmTimeout",
    "Mode",
    "RankedBy",
    "ShownPages",
    "TextOnly",
    "Token",
    "Uri",
]

# typer reads these at run time, so they stay Optional while Python 3.10 is supported.
Uri = Annotated[str, typer.Option("--uri", help="A path ending in .db, or a Milvus server's address.")]
Token = Annotated[Optional[str], typer.Option("--token", envvar="MILVUS_TOKEN", help="The server's token.")]  # noqa: UP045
CollectionName = Annotated[str, typer.Option("--collection-name", help="The collection's name.")]
ImageDir = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--image-dir", help="Where page images are written; by default beside the .db, as NAME.images."),
]
Embedder = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--embedder", help="The embedder that made the collection, if it is not where it was."),
]
File = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--file", help="Only pages of the file with this name; may be given several times."),
]
Filter = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--filter",
        help="Only pages with such metadata, as 'page_number>=3', 'year in 2024,2025' or 'author is_empty'; of "
        "several, all have to hold.",
    ),
]


class Mode(str, Enum):
    """By what pages are ranked: what `retriever.Mode` has, for typer."""

    visual = "visual"
    text = "text"
    hybrid = "hybrid"


RankedBy = Annotated[
    Mode, typer.Option("--mode", help="By what pages are ranked; text: BM25 over the pages' text; hybrid: both.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

# What a chat model is shown, and how long it is waited for.
ShownPages = Annotated[int, typer.Option("--top-k", "-k", help="How many pages the model is shown.")]
TextOnly = Annotated[bool, typer.Option("--text-only", help="Show the model the pages' text and no pictures.")]
LlmMaxPixels = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Pictures are scaled down to so many pixels; 1000000 by default.", show_default=False),
]
LlmTimeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait for the model, each time it is silent.")]
