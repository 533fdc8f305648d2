from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_index_colqwen.cli.console import stdout
from tests.cli.commands import SAMPLES, run


@pytest.fixture(autouse=True)
def _working_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that are given no --uri use one where they are run."""
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let commands print as on a narrow terminal with colours."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "70"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    stdout.cache_clear()
    yield
    stdout.cache_clear()


@pytest.fixture(scope="package")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two sample PDFs that have a text layer, indexed."""
    path = tmp_path_factory.mktemp("cli") / "samples.db"
    pdfs = sorted(pdf for pdf in SAMPLES.glob("*.pdf") if "scan" not in pdf.name)
    result = run("index", *pdfs, "--uri", path)
    assert result.exit_code == 0, result.output
    assert "14 pages in" in result.output
    assert "14 added, 0 updated, 0 unchanged" in result.output
    return path
