from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_index_colqwen import LexicalEmbedder
from tests.cli.commands import ROOT, SAMPLES, run
from tests.documents import write_text_pdf

pytest.importorskip("pytrec_eval", reason="the [evaluate] extra is not installed")

QUESTIONS = ROOT / "examples" / "questions.jsonl"


@pytest.fixture
def readable(tmp_path: Path) -> Path:
    """The samples' questions that pages with a text layer answer, and one of which no page has a word."""
    lines = [line for line in QUESTIONS.read_text("utf-8").splitlines() if "scan" not in line]
    lines.append('{"id": "none", "query": "Xylophone?", "pdf": "tidal-sensors-paper.pdf", "pages": [6]}')
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.mark.slow
def test_the_samples_are_evaluated_and_what_is_stored_is_not_read_anew(tmp_path: Path) -> None:
    command = ("evaluate", QUESTIONS, "--pdfs", SAMPLES, "--ocr", "never")
    report = tmp_path / "report.html"
    result = run(*command, "--html", report, "--fail-under", "ndcg@5=.75", "--fail-under", "hit@1=.7")
    assert result.exit_code == 0, result.output
    # Five of the twenty questions are about the scan, of which no page has text without OCR.
    assert result.stdout.startswith("lexical, mode visual: 20 questions, 17 pages")
    assert "visual       .750 [.55, .90]" in result.stdout
    assert report.read_text("utf-8").count('<details class="first">') == 15
    [database] = Path("colqwen-evaluation").glob("pdfs-lexical-*.db")
    limits = [part for limit in ("recall@20=1", "hit@3=.76", "recall@5=.9") for part in ("--fail-under", limit)]
    again = run(*command, "--json", "--mode", "hybrid", *limits)
    assert again.exit_code == 1
    assert again.stderr.endswith("hit@3 is 0.7500, under 0.76; recall@5 is 0.7500, under 0.9.\n")
    told = json.loads(again.stdout)
    assert told["figures"]["hybrid"]["ndcg@5"]["mean"] == told["figures"]["bm25"]["ndcg@5"]["mean"] == 0.75
    assert [answer["rank"] for answer in told["answers"]][:15] == [1] * 15
    assert list(Path("colqwen-evaluation").glob("*.db")) == [database]


def test_an_index_that_is_there_can_be_asked(db: Path, readable: Path) -> None:
    told = json.loads(run("evaluate", readable, "--uri", db, "--json").stdout)
    assert (told["pages"], told["questions"]) == (14, 16)
    assert told["figures"]["visual"]["hit@1"]["mean"] == 15 / 16


def test_pages_that_left_the_folder_are_not_found_any_more(tmp_path: Path) -> None:
    folder = tmp_path / "pdfs"
    folder.mkdir()
    for name in ("harbour-annual-report.pdf", "tidal-sensors-paper.pdf"):
        (folder / name).write_bytes((SAMPLES / name).read_bytes())
    question = tmp_path / "questions.jsonl"
    question.write_text(QUESTIONS.read_text("utf-8").splitlines()[0], "utf-8")
    assert json.loads(run("evaluate", question, "--pdfs", folder, "--json").stdout)["pages"] == 14
    (folder / "tidal-sensors-paper.pdf").unlink()
    assert json.loads(run("evaluate", question, "--pdfs", folder, "--json").stdout)["pages"] == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fail-under", "ndcg@5"], "--fail-under is a measure and a number from 0 to 1, as in ndcg@5=.6; got 'ndcg"),
        (["--fail-under", "ndcg@5=60"], "--fail-under is a measure and a number from 0 to 1, as in ndcg@5=.6; got"),
        (["--fail-under", "ndcg@5=nan"], "--fail-under is a measure and a number from 0 to 1, as in ndcg@5=.6; got"),
        (["--fail-under", "map=.6"], "Measures are hit@k, ndcg@k and recall@k, with k from 1 to 1000; got 'map'."),
        ([], "Give --pdfs, the folder that is asked, or --uri, an index that is there."),
        (["--pdfs", ".", "--uri", "x.db"], "Give --pdfs, the folder that is asked, or --uri, an index that is there."),
        (["--pdfs", "nowhere"], "nowhere: there is no such file or folder."),
        (["--pdfs", "."], "the folder has no files at all; supported are"),
        (
            ["--pdfs", ".", "--html", "nowhere/report.html"],
            "report.html cannot be written: there is no folder nowhere.",
        ),
        (["--uri", "nowhere.db"], "nowhere.db"),
    ],
)
def test_a_mistake_gets_one_sentence(readable: Path, options: list[str], said: str) -> None:
    result = run("evaluate", readable, *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_questions_that_name_what_is_not_there_get_one_sentence(db: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    for pdf, pages, said in (
        ("tidal-sensors-paper.pdf", "[7]", "page 7 of tidal-sensors-paper.pdf, which has 6 pages."),
        ("tidal-sensor-paper.pdf", "[1]", "is not among the 2 files: is it tidal-sensors-paper.pdf?"),
        ("tidal-sensors-paper.pdf", "[]", "line 1: 'pages' is a list of the pages that answer, at least one; got ()."),
    ):
        file.write_text(f'{{"query": "Which sensor?", "pdf": "{pdf}", "pages": {pages}}}', "utf-8")
        result = run("evaluate", file, "--uri", db)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.endswith(f"{said}\n")
        assert result.stderr.count("\n") == 1
    missing = run("evaluate", tmp_path / "none.jsonl", "--uri", db)
    assert missing.exit_code == 1
    assert missing.stderr.endswith("none.jsonl: there is no such file of questions.\n")


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pdf = write_text_pdf(tmp_path / "basin.pdf", "Salinity of the basin", "Turbidity of the basin")
    (tmp_path / "questions.jsonl").write_text('{"query": "turbidity", "pdf": "basin.pdf", "pages": [2]}', "utf-8")
    command = ("evaluate", tmp_path / "questions.jsonl", "--pdfs", pdf, "--ocr", "never", "--json")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LexicalEmbedder, "embed_queries", interrupted)
        result = run(*command)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.endswith("Interrupted. What is stored stays; the same command goes on from there.\n")
    monkeypatch.setattr(LexicalEmbedder, "embed_pages", interrupted)  # there is nothing to embed any more
    assert json.loads(run(*command).stdout)["figures"]["visual"]["hit@1"]["mean"] == 1
