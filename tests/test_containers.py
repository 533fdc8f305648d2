"""Dockerfile and compose file: the commands in them are commands of ours. (They are not run here.)"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer.main

from llama_index_colqwen.cli import app

ROOT = Path(__file__).parents[1]
PATTERNS = {"Dockerfile": r"^CMD (\[.*\])$", "compose.yaml": r'^ +command: (\[(?!"milvus").*\])$'}


@pytest.mark.parametrize(("name", "count"), [("Dockerfile", 1), ("compose.yaml", 2)])
def test_commands_in_containers_are_ours(name: str, count: int) -> None:
    if not (ROOT / name).exists():
        pytest.skip("the source distribution has none")
    commands = re.findall(PATTERNS[name], (ROOT / name).read_text("utf-8"), re.MULTILINE)
    assert len(commands) == count
    group = typer.main.get_group(app)
    for first, *arguments in map(json.loads, commands):
        context = group.commands[first].make_context(first, arguments)  # raises over what it does not know
        assert context.params["host"] == "0.0.0.0"
