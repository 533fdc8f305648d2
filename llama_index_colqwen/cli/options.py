"""Options that several commands have: which collection, on which Milvus, which of its pages, printed how."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

__all__ = ["AsJson", "CollectionName", "Embedder", "File", "Filter", "Token", "Uri"]

# typer reads these at run time, so they stay Optional while Python 3.10 is supported.
Uri = Annotated[str, typer.Option("--uri", help="A path ending in .db, or a Milvus server's address.")]
Token = Annotated[Optional[str], typer.Option("--token", envvar="MILVUS_TOKEN", help="The server's token.")]  # noqa: UP045
CollectionName = Annotated[str, typer.Option("--collection-name", help="The collection's name.")]
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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
