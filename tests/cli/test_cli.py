from __future__ import annotations

import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from llama_index_colqwen import MilvusPageStore
from llama_index_colqwen.cli import app, main
from tests.cli.commands import ROOT, SAMPLES, run
from tests.documents import write_text_pdf


def test_search_writes_pictures_of_what_matches(db: Path, tmp_path: Path) -> None:
    question = "Which sensor drifted least in the salt-spray test?"
    result = run("search", question, "--uri", db, "-k", 2, "--explain", tmp_path / "new" / "pictures", "--json")
    assert result.exit_code == 0, result.output
    assert [hit["rank"] for hit in json.loads(result.stdout)] == [1, 2]
    assert "What matches is shown in" in result.stderr
    names = sorted(path.name for path in (tmp_path / "new" / "pictures").iterdir())
    assert len(names) == 4
    assert names[:2] == ["01-tidal-sensors-paper-p3.html", "01-tidal-sensors-paper-p3.jpg"]
    assert question in (tmp_path / "new" / "pictures" / names[0]).read_text("utf-8")
    assert (tmp_path / "new" / "pictures" / names[1]).read_bytes().startswith(b"\xff\xd8")


def test_info_lists_documents_and_the_embedder(db: Path) -> None:
    result = run("info", "--uri", db)
    assert "made by lexical" in result.output
    assert "2 documents, 14 pages" in result.output
    [line] = [line for line in result.output.splitlines() if line.startswith("tidal-sensors-paper.pdf")]
    _, pages, document_id = line.split("\t")
    assert (pages, len(document_id)) == ("6", 64)
    told = json.loads(run("info", "--uri", db, "--json", "--check").stdout)
    assert (told["collection_name"], told["embedder"]["model"], told["pages"]) == ("pages", "lexical", 14)
    assert {"document_id": document_id, "file_name": "tidal-sensors-paper.pdf", "pages": 6} in told["documents"]
    assert told["check"]["lost"] == []


@pytest.mark.usefixtures("terminal")
def test_info_draws_a_table_on_a_terminal(db: Path) -> None:
    assert re.search(
        r"\u2502 tidal-sensors-paper.pdf +\u2502 6 +\u2502 [0-9a-f]{16} \u2502", run("info", "--uri", db).output
    )


def test_deleting_takes_file_names_paths_and_ids_or_else_nothing(tmp_path: Path) -> None:
    db = tmp_path / "x.db"
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c", "d"):
        write_text_pdf(tmp_path / "in" / f"{name}.pdf", f"{name} report", f"{name} second page")
    indexed = json.loads(run("index", tmp_path / "in", "--uri", db, "--ocr", "never", "--json").stdout)
    assert (indexed["pages"], indexed["added"], indexed["uri"]) == (8, 8, str(db))
    ids = {
        one["file_name"]: one["document_id"]
        for one in json.loads(run("info", "--uri", db, "--json").stdout)["documents"]
    }

    for nothing in (["e.pdf"], ["a.pdf", "e.pdf"], [ids["b.pdf"][:7]], [tmp_path / "a.pdf"], [""]):
        refused = run("delete", *nothing, "--uri", db)
        assert refused.exit_code == 1
        assert re.fullmatch(
            "Error: Nothing in collection 'pages' is called '.*'.*nothing was deleted.\n", refused.stderr
        )

    assert run("delete", "a.pdf", "--uri", db).stdout == f"2 pages deleted; 6 left in {db}.\n"
    assert run("delete", tmp_path / "in" / "b.pdf", "--uri", db).stdout.startswith("2 pages deleted; 4 left")
    assert run("delete", f"{ids['c.pdf']}-p00002", "--uri", db).stdout.startswith("1 page deleted; 3 left")
    left = run("delete", ids["c.pdf"], ids["d.pdf"][:16], "--uri", db, "--json").stdout
    assert json.loads(left) == {"deleted": 3, "pages": 0}
    nothing_there = run("search", "report", "--uri", db)
    assert (nothing_there.stdout, nothing_there.stderr) == ("", "No page is found: there is none.\n")


@pytest.mark.slow
def test_indexing_again_changes_nothing_and_a_new_version_replaces_the_old(tmp_path: Path) -> None:
    pdf, db = tmp_path / "report.pdf", tmp_path / "x.db"
    write_text_pdf(pdf, "turbidity of the harbour basin", "height of the harbour quay")
    assert "2 added" in run("index", pdf, "--uri", db).output
    assert "0 added, 0 updated, 2 unchanged, 0 removed" in run("index", pdf, "--uri", db).output
    write_text_pdf(pdf, "turbidity of the whole harbour")
    assert "1 pages in" in (output := run("index", pdf, "--uri", db).output)
    assert "1 added, 0 updated, 0 unchanged, 2 removed" in output


@pytest.mark.slow
def test_prune_removes_files_that_are_gone_and_check_repairs(tmp_path: Path) -> None:
    db = tmp_path / "x.db"
    (tmp_path / "in").mkdir()
    for name in ("kept", "gone"):
        write_text_pdf(tmp_path / "in" / f"{name}.pdf", f"{name} report of the harbour", "its second page, and last")
    assert "4 added" in run("index", tmp_path / "in", "--uri", db).output
    with fsspec.open("memory://far/away.pdf", "wb") as far:
        far.write((tmp_path / "in" / "gone.pdf").read_bytes().replace(b"%PDF-1.3", b"%PDF-1.4"))
    assert "2 added" in run("index", "memory://far", "--uri", db).output
    (tmp_path / "in" / "gone.pdf").unlink()
    assert "0 removed" in run("index", tmp_path / "in", "--uri", db).output
    assert "2 removed" in run("index", tmp_path / "in", "--uri", db, "--prune").output
    assert "2 pages deleted" in run("delete", "memory:///far/away.pdf", "--uri", db).stdout  # stayed: it is elsewhere
    assert "Checked 2 pages: nothing was wrong." in run("info", "--uri", db, "--check").output
    with MilvusPageStore(db) as store:
        opened = store._require_open()
        first, second = opened.search.find()
        opened.vectors.remove([first.vectors, second.vectors])
    shutil.rmtree(tmp_path / "x.cache")
    assert "2 pages had lost their vectors and were embedded again" in run("info", "--uri", db, "--check").output
    assert "kept.pdf" in run("search", "kept report", "--uri", db).output
    with MilvusPageStore(db) as store:
        opened = store._require_open()
        opened.vectors.remove([entry.vectors for entry in opened.search.find()])
    shutil.rmtree(tmp_path / "x.cache")
    shutil.rmtree(tmp_path / "x.images")
    result = run("info", "--uri", db, "--check")
    assert result.exit_code == 1
    assert "2 pages lack their vectors and their images (page 1 of kept.pdf, page 2 of kept.pdf)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["index", "no-such.pdf"], "no-such.pdf: there is no such file or folder"),
        (["index", "{tmp}"], "the folder has no files at all; supported are"),
        (["index", __file__], "files of type .py are not read"),
        (["index", "{samples}", "--uri", "x.sqlite"], "ending in .db"),
        (["index", "{samples}", "--language", "xx"], "no word frequencies for language 'xx'"),
        (["index", "{samples}", "--collection-name", "a-b"], "letters, digits and underscores"),
        (["search", "", "--uri", "{db}"], "The query is empty"),
        (["search", "?!", "--uri", "{db}"], "no letters or digits"),
        (["search", "x", "-k", "0", "--uri", "{db}"], "similarity_top_k is a whole number, at least 1"),
        (["search", "x", "--uri", "{tmp}/nothing.db"], "nothing has been indexed there"),
        (["search", "x", "--filter", "page_number", "--uri", "{db}"], "A filter is a key, an operator .*'page_number'"),
        (["info", "--uri", "{db}", "--collection-name", "other"], "no collection 'other'"),
        (["index", "{samples}", "--uri", "{db}", "--language", "de"], "language='en'.*language='de'"),
    ],
)
def test_mistake_gets_one_sentence_and_exit_code_1(
    db: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    places = {"{db}": str(db), "{tmp}": str(tmp_path), "{samples}": str(SAMPLES / "tidal-sensors-paper.pdf")}
    for mark, place in places.items():
        arguments = [argument.replace(mark, place) for argument in arguments]
    result = run(*arguments)
    assert result.exit_code == 1
    assert re.search(f"^Error: .*{sentence}", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_image_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    pdf = SAMPLES / "tidal-sensors-paper.pdf"
    result = run("index", pdf, "--uri", tmp_path / "x.db", "--image-dir", tmp_path / "taken" / "images")
    assert result.exit_code == 1
    assert re.search("^Error: .*Not a directory.*taken", result.stderr, re.MULTILINE)


def test_unknown_command_and_option_are_usage_errors() -> None:
    assert run("serch", "x").exit_code == 2
    assert run("search", "x", "--topk", "3").exit_code == 2


def test_unreadable_files_are_noted_when_skipped(tmp_path: Path) -> None:
    write_text_pdf(tmp_path / "good.pdf", "turbidity of the harbour basin")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7 and then nothing")
    write_text_pdf(tmp_path / "a.pdf", "settling tanks of the harbour")
    result = run("index", tmp_path, "--uri", tmp_path / "x.db")
    assert result.exit_code == 1
    assert "1 pages are stored." in result.stderr
    assert re.search(r"^Error: bad\.pdf: .*\(file 2 of 3; 1 page was .*--on-error skip", result.stderr, re.MULTILINE)
    result = run("index", tmp_path, "--uri", tmp_path / "x.db", "--on-error", "skip")
    assert result.exit_code == 0
    assert "Note: 1 of 3 files could not be read" in result.stderr
    assert "bad.pdf" in result.stderr
    assert "1 added, 0 updated, 1 unchanged" in result.stdout


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_stored_and_says_so(tmp_path: Path) -> None:
    for number in range(8):
        write_text_pdf(
            tmp_path / f"{number:02d}.pdf", *(f"page {number}-{part} of the maintenance manual" for part in range(25))
        )
    command = [sys.executable, "-m", "llama_index_colqwen.cli", "index", str(tmp_path), "--uri", str(tmp_path / "x.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            # At most 96 pages are drawn and not yet embedded; what is embedded is stored, also at Ctrl-C.
            deadline = time.monotonic() + 120
            while len(list((tmp_path / "x.images").rglob("*.jpg"))) < 96 + 32:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, "the pages were not drawn"
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()  # else leaving the block would wait for it
    assert process.returncode == 130
    stored = int(re.findall(r"Interrupted. (\d+) pages are stored", errors)[0])
    assert 32 <= stored < 200
    assert "Traceback" not in errors
    result = run("index", tmp_path, "--uri", tmp_path / "x.db")
    assert f"200 pages in {tmp_path / 'x.db'}: {200 - stored} added, 0 updated, {stored} unchanged" in result.output


@pytest.mark.slow
def test_visual_model_indexes_and_is_found_again_by_search(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    pdf, db = SAMPLES / "tidal-sensors-paper.pdf", tmp_path / "visual.db"
    model = tmp_path / "model"
    shutil.copytree(checkpoint(), model)
    result = run("index", pdf, "--uri", db, "--embedder", model, "--ocr", "never")
    assert result.exit_code == 0, result.output
    made_by = r"made by ColQwen2 in .*model \(revision \w+, 128-dim.*max_visual_tokens=768"
    assert re.search(made_by, run("info", "--uri", db).output)
    found = json.loads(run("search", "Which sensor drifted least?", "--uri", db, "--json", "-k", "2").stdout)
    assert [row["rank"] for row in found] == [1, 2]
    model.rename(tmp_path / "moved")
    gone = run("search", "Which sensor drifted least?", "--uri", db)
    assert re.search("Error: There is no folder '.*model'", gone.stderr)
    moved = ("--embedder", tmp_path / "moved")
    assert (
        json.loads(run("search", "Which sensor drifted least?", "--uri", db, "--json", "-k", "2", *moved).stdout)
        == found
    )


def test_doctor_says_what_works_and_how_to_fix_the_rest() -> None:
    result = run("doctor", "--uri", "http://127.0.0.1:9")
    assert result.exit_code == 0, result.output
    assert "works  Milvus Lite: milvus-lite" in result.output
    assert "works  Embedder 'lexical'" in result.output
    assert re.search(r"absent  Milvus at http://127.0.0.1:9: .*\n +fix it with: start the server", result.output)
    findings = {finding["what"]: finding for finding in json.loads(run("doctor", "--json").stdout)}
    assert findings["Milvus Lite"]["works"]
    assert findings["Milvus Lite"]["required"]


def test_version_is_the_packages() -> None:
    from llama_index_colqwen import __version__

    assert run("--version").output.strip() == __version__
    assert re.search(rf"^## \[?{re.escape(__version__)}", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)


def test_every_command_is_in_its_guide() -> None:
    guide = (ROOT / "docs" / "guides" / "command-line.md").read_text("utf-8")
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"colqwen {command.callback.__name__}" in guide


def test_help_has_a_short_name_and_completion_can_be_installed() -> None:
    assert run("-h").stdout == run("--help").stdout
    assert "--install-completion" in run("-h").stdout
    for command in app.registered_commands:
        assert command.callback is not None
        assert run(command.callback.__name__, "-h").exit_code == 0


def test_every_command_that_prints_results_prints_json_too() -> None:
    commands = {command.callback.__name__: command.callback for command in app.registered_commands if command.callback}
    assert {name for name, command in commands.items() if "as_json" not in inspect.signature(command).parameters} <= {
        "mcp",
        "serve",
        "ui",
    }


def test_names_that_are_not_utf_8_are_printed_with_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = {name: io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for name in ("stdout", "stderr")}
    for name, opened in strict.items():
        monkeypatch.setattr(sys, name, opened)
    monkeypatch.setattr(sys, "argv", ["colqwen", "info", "--uri", "\udce9/x.db"])
    with pytest.raises(SystemExit):
        main()
    assert {opened.errors for opened in strict.values()} == {"backslashreplace"}
    strict["stderr"].flush()
    assert b"\\udce9" in strict["stderr"].buffer.getvalue()
