from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from llama_index_colqwen.cli.ui import _has_desktop
from tests.cli.commands import ROOT, run
from tests.conftest import at_most

pytest.importorskip("starlette", reason="the [ui] extra is not installed")
pytest.importorskip("uvicorn", reason="the [ui] extra is not installed")


def test_other_machines_need_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLQWEN_TOKEN", "of another service")
    monkeypatch.delenv("COLQWEN_UI_TOKEN", raising=False)
    result = run("ui", "--uri", tmp_path / "pages.db", "--host", "0.0.0.0", "--port", 0)
    assert result.exit_code == 1
    assert "other machines can connect" in result.stderr
    assert "COLQWEN_UI_TOKEN" in result.stderr


def test_what_is_wrong_is_said_before_anything_is_served(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for options, sentence in (
        (["-k", 0], "top-k is a whole number"),
        (["--port", 65536], "port is a whole number from 0 to 65535; got 65536."),
        (["--port", -1], "port is a whole number"),
        (["--llm", "gpt"], "There is no key"),
        (["--embedder", "lexical", "--collection-name", "1"], "A collection's name"),
    ):
        result = run("ui", "--uri", db, "--port", 0, *options)
        assert result.exit_code == 1
        assert sentence in result.stderr


def test_no_browser_is_opened_where_nobody_sits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    assert not _has_desktop()  # tests have no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert _has_desktop()
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")
    assert not _has_desktop()


@pytest.mark.slow
def test_it_says_its_address_serves_the_collection_and_ends_at_ctrl_c(db: Path) -> None:
    line = [sys.executable, "-m", "llama_index_colqwen.cli", "ui", "--uri", str(db), "--port", "0", "--no-open"]
    line += ["--mode", "text"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ)) as process:
        with at_most(60, process):
            assert process.stderr is not None
            address = re.search(r"http://127\.0\.0\.1:\d+/", process.stderr.readline())
            assert address is not None
            transport = httpx.HTTPTransport(retries=5)
            with httpx.Client(base_url=address[0], transport=transport, timeout=20) as client:
                assert "<title>" in client.get("/").text
                for question, pages in (("sensor", 3), ("salt-spray", 1)):  # one page has the word
                    assert len(client.get("/api/search", params={"q": question, "k": "3"}).json()["hits"]) == pages
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
        assert process.wait() == 0
        assert "Traceback" not in rest
