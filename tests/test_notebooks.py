from __future__ import annotations

import re
import shutil
from itertools import groupby
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="the group dev is not installed")
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))


def read(name: str) -> NotebookNode:
    notebook: NotebookNode = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def kinds(notebook: NotebookNode) -> list[list[str]]:
    """The kinds of each cell's outputs; what a cell prints is one, in however many messages a slow kernel sends it."""
    return [
        [kind for kind, _ in groupby(output.get("name", output.output_type) for output in cell.outputs)]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_with_its_outputs_and_small_enough_to_be_rendered(name: str) -> None:
    path = EXAMPLES / f"{name}.ipynb"
    notebook = read(name)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "execute_result", "display_data"}
    assert outputs(notebook)
    assert not re.search(r"/(?:tmp|root|home|work|Users)/", path.read_text("utf-8"))  # of the machine that ran it
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "google.colab" in code[0].source


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    kept, ran = read(name), read(name)
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    NotebookClient(ran, timeout=300, resources={"metadata": {"path": str(tmp_path / "examples")}}).execute()
    warned = [output.text for output in outputs(ran) if output.get("name") == "stderr"]
    assert kinds(ran) == kinds(kept), warned
    assert all(output.get("data", {}).get("text/plain", "something") for output in outputs(ran))
