"""Options that several commands have: which collection, on which Milvus."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

__all__ = ["CollectionName", "Token", "Uri"]

# typer reads these at run time, so they stay Optional while Python 3.10 is supported.
Uri = Annotated[str, typer.Option("--uri", help="A path ending in .db, or a Milvus server's address.")]
Token = Annotated[Optional[str], typer.Option("--token", envvar="MILVUS_TOKEN", help="The server's token.")]  # noqa: UP045
CollectionName = Annotated[str, typer.Option("--collection-name", help="The collection's name.")]
