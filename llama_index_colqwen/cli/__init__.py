"""`colqwen`: the main path from a shell, one file a command.

Knows nothing that the library does not: it parses, calls, and prints. A mistake gets a sentence, never a traceback.
Commands import what they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from llama_index_colqwen import __version__
from llama_index_colqwen.cli.ask import ask
from llama_index_colqwen.cli.delete import delete
from llama_index_colqwen.cli.doctor import doctor
from llama_index_colqwen.cli.evaluate import evaluate
from llama_index_colqwen.cli.index import index
from llama_index_colqwen.cli.info import info
from llama_index_colqwen.cli.mcp import mcp
from llama_index_colqwen.cli.search import search
from llama_index_colqwen.cli.serve import serve
from llama_index_colqwen.cli.ui import ui

__all__ = ["app", "main"]

app = typer.Typer(
    name="colqwen",
    help="Ask questions of PDF pages as pictures.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes as long to import as everything else together
)
for _command in (index, search, ask, ui, info, delete, evaluate, serve, mcp, doctor):
    app.command()(_command)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


def main() -> None:
    """Run `colqwen`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may hold anything
    if sys.argv[1:] == ["--version"]:
        typer.echo(__version__)  # typer would import pydantic to read this one option: half a second
    else:
        app()
