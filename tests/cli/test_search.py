from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from llama_index_colqwen import ColQwenIndex
from llama_index_colqwen.retriever import Mode
from tests.cli.commands import ROOT, run

QUESTION = "Which sensor drifted least in the salt-spray test?"


def test_to_a_program_search_prints_a_line_a_page_and_cuts_nothing(db: Path) -> None:
    result = run("search", QUESTION, "--uri", db)
    assert result.exit_code == 0
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [len(line) for line in lines] == [6] * 5
    rank, score, file_name, label, image_path, snippet = lines[0]
    assert (rank, file_name, label) == ("1", "tidal-sensors-paper.pdf", "3")
    assert float(score) > float(lines[1][1])
    assert Path(image_path).is_file()
    assert "salt-spray" in snippet


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_matched_words_are_emphasised(db: Path) -> None:
    shown = run("search", QUESTION, "--uri", db, "-k", 1).stdout
    assert "1. tidal-sensors-paper.pdf, page 3" in shown
    assert "\x1b[1;33msalt\x1b[0m-\x1b[1;33mspray\x1b[0m" in shown
    assert "\x1b[1;33min\x1b[0m" not in shown
    assert str(db.with_suffix(".images")) in shown  # in one line, however narrow the terminal is


def test_search_as_json_names_pages_whose_images_are_there(db: Path) -> None:
    hits = json.loads(run("search", QUESTION, "--uri", db, "-k", 2, "--json").stdout)
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert (hits[0]["file_name"], hits[0]["page_number"]) == ("tidal-sensors-paper.pdf", 3)
    assert hits[0]["score"] > hits[1]["score"]
    assert Path(hits[0]["image_path"]).is_relative_to(db.with_suffix(".images"))
    assert Path(hits[0]["image_path"]).read_bytes().startswith(b"\xff\xd8")
    assert {"salt", "spray"} <= set(hits[0]["matched_words"])
    assert all(word in hits[0]["snippet"] for word in hits[0]["matched_words"])


@pytest.mark.parametrize("mode", get_args(Mode))
def test_pages_are_ranked_by_what_is_asked_for(db: Path, mode: Mode) -> None:
    hits = json.loads(run("search", QUESTION, "--uri", db, "--mode", mode, "--json").stdout)

    def ranked(mode: Mode) -> list[tuple[str, float]]:
        nodes = index.as_retriever(similarity_top_k=5, mode=mode).retrieve(QUESTION)
        return [(node.node_id, round(node.get_score(), 4)) for node in nodes]

    with ColQwenIndex.from_existing(db) as index:
        by_mode = {one: ranked(one) for one in get_args(Mode)}
    found = [(hit["page_id"], hit["score"]) for hit in hits]
    assert [one for one, expected in by_mode.items() if found == expected] == [mode]


def test_a_mode_that_there_is_not_is_a_usage_error(db: Path) -> None:
    result = run("search", QUESTION, "--uri", db, "--mode", "words")
    assert result.exit_code == 2
    assert "'words' is not one of 'visual', 'text', 'hybrid'" in result.stderr


def test_filters_choose_the_pages(db: Path) -> None:
    def pages(*options: str) -> list[tuple[str, int]]:
        hits = json.loads(run("search", "sensor", "--uri", db, "-k", 20, "--json", *options).stdout)
        return sorted((hit["file_name"].split("-")[0], hit["page_number"]) for hit in hits)

    tidal = [("tidal", number) for number in range(1, 7)]
    assert pages("--file", "tidal-sensors-paper.pdf") == tidal
    assert pages("--file", "tidal-sensors-paper.pdf", "--filter", "page_number>=5") == tidal[4:]
    assert pages("--file", "tidal-sensors-paper.pdf", "--filter", "page_label = 3") == [tidal[2]]  # a text
    nothing = run("search", "sensor", "--uri", db, "--file", "other.pdf")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert nothing.stderr == "No page is found: no page's metadata pass the filters.\n"
    assert pages("--file", "other.pdf") == []


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other viewers")
def test_open_shows_the_best_page_in_the_viewer(db: Path, tmp_path: Path) -> None:
    viewer = tmp_path / "xdg-open"
    viewer.write_text('#!/bin/sh\necho "$1" > "$VIEWED.part" && mv "$VIEWED.part" "$VIEWED"\n')
    viewer.chmod(0o755)
    command = [sys.executable, "-m", "llama_index_colqwen.cli", "search", QUESTION, "--uri", str(db), "--open"]
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "VIEWED": str(tmp_path / "seen"),
    }
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (tmp_path / "seen").read_text().strip() == done.stdout.splitlines()[0].split("\t")[4]


def test_open_says_where_the_image_is_if_there_is_no_viewer(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("other systems have other viewers")
    monkeypatch.setenv("PATH", "/nowhere")
    result = run("search", QUESTION, "--uri", db, "--open")
    assert result.exit_code == 1
    assert "Error: There is no viewer to open images with (xdg-open); the image is " in result.stderr
