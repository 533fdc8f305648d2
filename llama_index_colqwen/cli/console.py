"""What commands print with, and errors and warnings -> sentences."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, TextIO

import typer

from llama_index_colqwen.errors import ColQwenError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["plain_errors", "print_json", "print_rows", "stderr", "stdout"]


@lru_cache(maxsize=1)
def stdout() -> Console:
    """Return the console for results."""
    return _console(to_stderr=False)


@lru_cache(maxsize=1)
def stderr() -> Console:
    """Return the console for everything that is not a result."""
    return _console(to_stderr=True)


def _console(*, to_stderr: bool) -> Console:
    from rich.console import Console

    # Sentences are not broken into lines and not coloured: they are copied, and read by programs.
    return Console(stderr=to_stderr, soft_wrap=True, highlight=False)


def print_json(value: object) -> None:
    """Print a result for programs."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on a terminal; else, for other programs, a line a row with tabs between, without the heading."""
    if not stdout().is_terminal:
        for row in rows:
            typer.echo(
                "\t".join(" ".join(("" if cell is None else str(cell)).splitlines()).replace("\t", " ") for cell in row)
            )
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")  # what is cut could not be copied
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    stdout().print(table)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print our errors and warnings as sentences, and exit with 1 after an error."""
    from rich.markup import escape

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        stderr().print(f"[yellow]Note:[/] {escape(str(message))}")

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        try:
            yield
        except (ColQwenError, OSError) as error:
            stderr().print(f"[red]Error:[/] {escape(str(error))}")
            raise typer.Exit(1) from None
