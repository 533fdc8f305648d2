from __future__ import annotations

import pytest
from rich.table import Table

from llama_index_colqwen.text_tables import as_text


def test_parts_are_lines_of_plain_text() -> None:
    table = Table("Name")
    table.add_row("[bold]page[/]")
    lines = as_text("a line", table, width=40).splitlines()
    assert lines[0] == "a line"
    assert "page" in lines[4]
    assert "\x1b" not in "".join(lines)


def test_in_a_notebook_text_is_returned_and_nothing_is_displayed(monkeypatch: pytest.MonkeyPatch) -> None:
    displayed: list[str] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: displayed.append(text))
    assert as_text("a line", width=40) == "a line"
    assert displayed == []
