"""What commands print with, and errors and warnings -> sentences."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, TextIO

import typer

from llama_index_colqwen.errors import ColQwenError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["plain_errors", "stderr", "stdout"]


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
