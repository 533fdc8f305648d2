"""What every test module may ask for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sample_pdfs() -> Path:
    """The folder of awkward real PDFs that lies beside the repository on some machines."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "sample_pdfs"
    if not folder.is_dir():
        pytest.skip("the sample PDFs (../shared/sample_pdfs) are not on this machine")
    return folder


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Run code in a fresh interpreter, with nothing imported and no memory used yet; returns what it prints."""

    def run(code: str, *arguments: object) -> str:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
