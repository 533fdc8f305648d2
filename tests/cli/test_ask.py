from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from llama_index_colqwen import ColQwenIndex
from llama_index_colqwen.resize import DEFAULT_LLM_PIXELS
from tests.chat_endpoint import ChatEndpoint, chat_endpoint, image_size
from tests.cli.commands import ROOT, run
from tests.documents import write_text_pdf
from tests.extras import needs_openai

pytestmark = needs_openai

QUESTION = "Which sensor drifted least in the salt-spray test?"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatEndpoint]:
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_API_BASE",
        "OPENAI_MODEL",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    with chat_endpoint() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        yield running


def ask(db: Path, *options: object, question: str = QUESTION) -> Result:
    return run("ask", question, "--llm", "seer", "--uri", db, *options)


def test_the_model_sees_pages_with_their_captions_and_the_answer_comes_with_a_list_of_them(
    db: Path, endpoint: ChatEndpoint
) -> None:
    result = ask(db, "-k", 2)
    assert result.exit_code == 0, result.output
    answer, _, pages = result.stdout.partition("\n\nPages that the model was shown:\n")
    assert answer == "The salt-spray test [report.pdf, page 1]."
    assert pages.splitlines()[0] == "  tidal-sensors-paper.pdf, page 3"
    assert len(pages.splitlines()) == 2

    [(path, headers, body)] = endpoint.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer none"
    assert (body["model"], body["stream"]) == ("seer", True)
    assert "temperature" not in body
    parts = endpoint.parts()
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "image_url", "text"]
    for picture, page in zip((1, 3), pages.splitlines(), strict=True):
        name, label = re.findall(r"file_name: (.*)\npage_label: (.*)$", parts[picture - 1]["text"])[0]
        assert page == f"  {name}, page {label}"
        width, height = image_size(parts[picture])
        assert 0.9 * DEFAULT_LLM_PIXELS < width * height <= DEFAULT_LLM_PIXELS
    assert parts[-1]["text"].endswith(f"Question: {QUESTION}")
    for hidden in (str(db.parent), "image_path", "base64", "sha256"):
        assert hidden not in endpoint.words()
    assert not re.search("[0-9a-f]{32}", endpoint.words())


def test_options_reach_the_model_and_a_program_gets_one_object(
    db: Path, endpoint: ChatEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret ")
    result = ask(db, "--json", "--top-k", 1, "--llm-max-pixels", 10_000, "--filter", "page_number>3")
    told = json.loads(result.stdout)
    assert told["answer"] == "The salt-spray test [report.pdf, page 1]."
    [page] = told["pages"]
    assert (page["rank"], page["page_number"] > 3) == (1, True)
    [(_, headers, body)] = endpoint.requests
    assert headers["Authorization"] == "Bearer sk-secret"
    assert not body.get("stream")
    [(width, height)] = endpoint.image_sizes()
    assert width * height <= 10_000


def test_the_model_is_shown_the_pages_that_the_mode_ranks_first(db: Path, endpoint: ChatEndpoint) -> None:
    told = json.loads(ask(db, "--json", "--mode", "text").stdout)
    with ColQwenIndex.from_existing(db) as index:
        hits = index.as_retriever(mode="text").retrieve(QUESTION)
    assert [page["score"] for page in told["pages"]] == [round(hit.get_score(), 4) for hit in hits]


def test_text_only_sends_the_text_of_the_pages_and_no_picture(db: Path, endpoint: ChatEndpoint) -> None:
    result = ask(db, "--text-only", "-k", 1, "--file", "tidal-sensors-paper.pdf")
    assert result.exit_code == 0, result.output
    assert {part["type"] for part in endpoint.parts()} == {"text"}
    assert "file_name: tidal-sensors-paper.pdf\npage_label: 3\n" in endpoint.words()
    assert "drifted least: its antenna" in endpoint.words()
    assert endpoint.words().endswith(f"Question: {QUESTION}")
    assert not re.search("[0-9a-f]{32}", endpoint.words())


def test_what_steers_a_terminal_is_not_printed(db: Path, endpoint: ChatEndpoint) -> None:
    endpoint.answer = ["It is\x1b[2J ", "[bold]\nthe radar.\r"]
    assert ask(db).stdout.startswith("It is[2J [bold]\nthe radar.\n\nPages")


@pytest.mark.slow
def test_the_answer_is_printed_as_it_comes(db: Path, endpoint: ChatEndpoint) -> None:
    endpoint.pause = threading.Event()  # after the first piece
    command = [sys.executable, "-m", "llama_index_colqwen.cli", "ask", QUESTION, "--llm", "seer", "--uri", str(db)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=dict(os.environ)) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.read(15) == b"The salt-spray "
            endpoint.pause.set()
            assert process.stdout.read().startswith(b"test [report.pdf, page 1].\n\nPages")
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("status", "refusal", "sentence"),
    [
        (
            400,
            "image_url is only supported by certain models",
            r"refuses images \(HTTP 400\): .*certain models.*--text-only",
        ),
        (404, "No endpoints found that support image input", r"refuses images \(HTTP 404\)"),
        (500, "this server has no mmproj", r"refuses images \(HTTP 500\)"),
        (401, "Incorrect API key: sk-secret", r"refused \(HTTP 401\): the key is wrong.*Set OPENAI_API_KEY"),
        (403, "not for you", r"refused \(HTTP 403\)"),
        (
            404,
            "model not found",
            r"There is no model 'seer' at http://127.0.0.1:\d+/v1 \(HTTP 404\): .*model not found",
        ),
        (429, "slow down", r"failed \(HTTP 429\): .*slow down"),
        (500, "sk-secret data:image/jpeg;base64," + "A" * 500, r"\(HTTP 500\): .*\(the key\) \(a picture\)"),
    ],
)
def test_a_refusal_is_one_sentence(
    db: Path, endpoint: ChatEndpoint, monkeypatch: pytest.MonkeyPatch, status: int, refusal: str, sentence: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    endpoint.status, endpoint.refusal = status, refusal
    result = ask(db, "-k", 1)
    assert result.exit_code == 1
    assert re.fullmatch(f"Error: [^\n]*{sentence}[^\n]*\n", result.stderr)
    assert "sk-secret" not in result.output
    assert len(endpoint.requests) == 1


def test_nothing_there_silence_and_other_services_are_one_sentence(
    db: Path, endpoint: ChatEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*options: object) -> str:
        result = ask(db, "-k", 1, *options)
        assert result.exit_code == 1
        assert re.fullmatch("Error: [^\n]*\n", result.stderr)
        return result.stderr

    endpoint.answer = [""]
    assert "answered nothing" in error()
    endpoint.raw = b"<html>welcome</html>"
    assert "answered nothing" in error()
    assert "no chat completion" in error("--json")
    endpoint.raw = b"data: <html>\n\n"
    assert "no chat completion" in error()
    endpoint.raw = b'data: {"error": {"message": "out of memory"}}\n\n'
    assert "failed: out of memory" in error()
    endpoint.raw, endpoint.wait = None, threading.Event()
    assert "did not answer within 0.2 s: wait longer with --timeout" in error("--timeout", "0.2")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:pass@127.0.0.1:9/v1")
    gone = error()
    assert "There is no model endpoint at http://127.0.0.1:9/v1 (" in gone
    assert "pass" not in gone


@pytest.mark.parametrize(
    ("variables", "options", "sentence"),
    [
        ({"OPENAI_BASE_URL": ""}, [], "There is no key: put OpenAI's in OPENAI_API_KEY"),
        ({"OPENAI_BASE_URL": "https://api.openai.com/v1/"}, [], "There is no key"),
        ({"OPENAI_BASE_URL": "localhost:8000"}, [], "OPENAI_BASE_URL is no address"),
        ({"OPENAI_BASE_URL": "http://[::1"}, [], "OPENAI_BASE_URL is no address"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:65536"}, [], "OPENAI_BASE_URL is no address"),
        ({"OPENAI_API_KEY": "sk-caf\u00e9"}, [], "OPENAI_API_KEY cannot be sent"),
        ({}, ["--timeout", "0"], "timeout is a number of seconds above 0; got 0"),
        ({}, ["--llm-max-pixels", "0"], "max_pixels is a whole number, at least 1"),
        ({}, ["--top-k", "0"], "similarity_top_k is a whole number, at least 1"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_sent(
    db: Path,
    endpoint: ChatEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    options: list[str],
    sentence: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = ask(db, *options)
    assert result.exit_code == 1
    assert re.fullmatch(f"Error: {sentence}[^\n]*\n", result.stderr)
    assert endpoint.requests == []


def test_pages_without_text_and_no_pages_are_said(tmp_path: Path, endpoint: ChatEndpoint) -> None:
    blank, db = tmp_path / "blank.pdf", tmp_path / "x.db"
    write_text_pdf(blank, "")
    run("index", blank, "--uri", db, "--ocr", "never")
    result = ask(db, "--text-only")
    assert result.exit_code == 1
    assert result.stderr == "Error: None of the pages that were found has text: ask without --text-only.\n"
    result = ask(db, "--file", "other.pdf")
    assert result.exit_code == 1
    assert result.stderr == "Error: No page is found: the collection is empty, or the filters keep none.\n"
    assert endpoint.requests == []


def test_without_a_model_it_is_a_usage_error(db: Path, endpoint: ChatEndpoint) -> None:
    assert run("ask", QUESTION, "--uri", db).exit_code == 2
    assert run("ask", QUESTION, "--uri", db, env={"OPENAI_MODEL": "seer"}).exit_code == 0
    assert endpoint.requests[0][2]["model"] == "seer"


def test_without_the_extra_the_line_that_installs_it_is_named(
    db: Path, endpoint: ChatEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_index.llms.openai_like", None)
    result = ask(db)
    assert result.exit_code == 1
    assert "pip install 'llama-index-colqwen[ask]'" in result.stderr
