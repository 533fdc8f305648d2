"""`colqwen` in this process, on the samples."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from llama_index_colqwen.cli import app

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "examples" / "pdfs"

# click before 8.2, which the oldest typer takes, puts both streams into one unless it is told not to.
_STREAMS: dict[str, Any] = (
    {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner.__init__).parameters else {}
)


def run(*arguments: object, env: Mapping[str, str | None] | None = None) -> Result:
    """Run a command."""
    return CliRunner(**_STREAMS).invoke(app, [str(argument) for argument in arguments], env=env)
