from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import Document
from PIL import Image

from llama_index_colqwen import (
    MissingDependencyError,
    MissingTextWarning,
    PDFPageReader,
    SkippedDocumentWarning,
    word_boxes,
)
from llama_index_colqwen.reading import ocr
from tests.documents import Sheet, Text, draw_scan, walk, write_pdf, write_scan, write_text_pdf
from tests.forks import in_fork, needs_fork

needs_ocr = pytest.mark.skipif(not ocr.is_available(), reason="the [ocr] extra is not installed")

needs_xdg = pytest.mark.skipif(sys.platform != "linux", reason="the user's cache is elsewhere on this system")

LINES = [(100, 150, "INVOICE 4711"), (100, 800, "Total amount due")]
SCAN = draw_scan(LINES)
WORDS = ["INVOICE", "4711", "Total", "amount", "due"]


def read(path: Path, **options: Any) -> list[Document]:  # noqa: ANN401
    return PDFPageReader(**{"max_pixels": 400_000, **options}).load_data(path)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, with nothing in it."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "llama-index-colqwen" / "ocr"


@pytest.mark.slow
@needs_ocr
@pytest.mark.parametrize("rotate", [0, 90])
def test_words_of_a_scanned_page_are_read_with_boxes_in_place(tmp_path: Path, rotate: int) -> None:
    size = (612.0, 792.0) if rotate == 0 else (792.0, 612.0)
    # What /Rotate turns clockwise lies in the file turned the other way.
    sheet = Sheet(scan=SCAN.rotate(rotate, expand=True), size=size, rotate=rotate)
    (document,) = read(write_pdf(tmp_path / "scan.pdf", [sheet]))
    boxes = word_boxes(document)
    assert document.text.splitlines() == ["INVOICE 4711", "Total amount due"]
    assert [box.text for box in boxes] == WORDS == document.text.split()
    assert document.metadata["text_source"] == "ocr"
    for box, (left, top) in ((boxes[0], LINES[0][:2]), (boxes[2], LINES[1][:2])):
        assert box.left == pytest.approx(left / 850, abs=0.02)
        assert box.top < (top + 18) / 1100 < box.bottom < (top + 60) / 1100, "the box is not on its line"
        assert box.top > (top - 15) / 1100
    assert boxes[0].right < boxes[1].left < boxes[1].right and boxes[2].right < boxes[3].left


@pytest.mark.slow
@needs_ocr
def test_page_scanned_upside_down_is_read_with_boxes_where_the_words_stand(tmp_path: Path) -> None:
    (document,) = read(write_scan(tmp_path / "scan.pdf", SCAN.rotate(180)))
    boxes = word_boxes(document)
    assert [box.text for box in boxes] == WORDS
    left, top = LINES[0][:2]
    assert boxes[0].right == pytest.approx(1 - left / 850, abs=0.02)
    assert boxes[0].top < 1 - (top + 18) / 1100 < boxes[0].bottom


@needs_ocr
def test_what_was_read_is_kept_in_image_dir_and_used_the_next_time(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "scan.pdf", SCAN)
    (first,) = read(path, image_dir=tmp_path / "images")
    (kept,) = walk(tmp_path / "images" / "ocr")
    assert first.metadata["page_sha256"] in kept.name and ocr.ENGINE in kept.name
    record = json.loads(kept.read_text("utf-8"))
    assert record["text"] == first.text
    record["text"] = record["text"].replace("INVOICE", "ALTERED")
    record["words"][0][0] = "ALTERED"
    kept.write_text(json.dumps(record), "utf-8")
    (second,) = read(path, image_dir=tmp_path / "images")
    assert second.text == first.text.replace("INVOICE", "ALTERED")
    assert second.metadata["word_boxes"] == first.metadata["word_boxes"]
    assert second.metadata["text_source"] == "ocr"


@needs_ocr
@needs_xdg
def test_what_was_read_for_one_folder_or_for_none_is_not_read_again_for_another(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scan(tmp_path / "scan.pdf", SCAN)
    (first,) = read(path)
    (kept,) = walk(cache)
    assert cache.stat().st_mode & 0o777 == 0o700, "others can read the documents' text"
    monkeypatch.setattr(ocr, "read_words", None)
    (second,) = read(path, image_dir=tmp_path / "images")
    assert (second.text, second.metadata["text_source"]) == (first.text, "ocr")
    (copy,) = walk(tmp_path / "images" / "ocr")
    assert copy.read_bytes() == kept.read_bytes(), "the image folder cannot be taken to another machine"
    kept.unlink()
    assert read(path, image_dir=tmp_path / "images")[0].text == first.text
    assert kept.exists()


@pytest.mark.slow
@needs_ocr
@needs_xdg
def test_damaged_or_unwritable_cache_is_no_error(tmp_path: Path, cache: Path) -> None:
    path = write_scan(tmp_path / "scan.pdf", SCAN)
    text = read(path)[0].text
    (kept,) = walk(cache)
    for damage in ("", "[]", '{"text": "x"}', '{"text": "x", "words": [1]}'):
        kept.write_text(damage)
        assert read(path)[0].text == text
        assert json.loads(kept.read_text("utf-8"))["text"] == text
    shutil.rmtree(cache)
    cache.write_text("no folder")
    assert read(path)[0].text == text


@needs_ocr
def test_progress_knows_all_pages_and_names_the_one_that_ocr_is_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text_pdf(tmp_path / "a.pdf", "A page that has a text layer", "and another page that has a text layer")
    write_scan(tmp_path / "b.pdf", SCAN)
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.7 and then nothing")
    write_text_pdf(tmp_path / "d.pdf", "A page that has a text layer")
    with pytest.warns(SkippedDocumentWarning):
        PDFPageReader(max_pixels=400_000, on_error="skip").load_data(tmp_path)
    shown = re.findall(r"(\d+/\d+) \[[^\]]*?(OCR: [^\]]*)?\]", capsys.readouterr().err)
    assert ("2/5", "OCR: b.pdf page 1") in shown, "OCR begins without a word"
    assert shown[-1] == ("5/5", "")


@needs_ocr
def test_stamp_on_a_scan_is_not_taken_for_its_text(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "scan.pdf", [Sheet([Text(500, 20, "p. 7", 8)], scan=SCAN)])
    (document,) = read(path)
    assert "Total amount due" in document.text and document.metadata["text_source"] == "ocr"


@needs_ocr
def test_always_reads_pages_that_have_a_text_layer(tmp_path: Path) -> None:
    path = write_text_pdf(tmp_path / "x.pdf", "A text layer with more than twenty letters")
    (document,) = read(path, ocr="always")
    assert document.text.split()[:3] == ["A", "text", "layer"] and document.metadata["text_source"] == "ocr"


@pytest.mark.slow
@needs_ocr
@pytest.mark.parametrize(
    ("scan", "mode"),
    [
        pytest.param(Image.linear_gradient("L").resize((400, 500)), "auto", id="picture-without-words"),
        pytest.param(None, "always", id="blank-page"),
    ],
)
def test_page_without_words_raises_no_warning_where_ocr_is_installed(
    tmp_path: Path, scan: Image.Image | None, mode: str
) -> None:
    (document,) = read(write_pdf(tmp_path / "x.pdf", [Sheet(scan=scan)]), ocr=mode)
    assert (document.text, document.metadata["text_source"]) == ("", "none")


def test_page_with_a_text_layer_is_not_read_again(tmp_path: Path) -> None:
    path = write_text_pdf(tmp_path / "x.pdf", "A text layer with more than twenty letters")
    (document,) = read(path, image_dir=tmp_path / "images")
    assert document.metadata["text_source"] == "text-layer"
    assert not (tmp_path / "images" / "ocr").exists()


@pytest.mark.parametrize("sheet", [Sheet(), Sheet(scan=Image.new("RGB", (60, 80), "white"))], ids=["empty", "white"])
def test_blank_page_is_not_read_and_raises_no_warning(tmp_path: Path, sheet: Sheet) -> None:
    (document,) = read(write_pdf(tmp_path / "x.pdf", [sheet]), image_dir=tmp_path / "images")
    assert (document.text, document.metadata["text_source"]) == ("", "none")
    assert not (tmp_path / "images" / "ocr").exists()


@pytest.mark.parametrize("options", [{"ocr": "never"}, {"extract_text": False}], ids=["never", "no-text-wanted"])
def test_scan_that_is_not_to_be_read_has_no_text_and_raises_no_warning(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for available in (True, False):
        monkeypatch.setattr(ocr, "is_available", lambda available=available: available)
        (document,) = read(write_scan(tmp_path / "scan.pdf", SCAN), **options)
        assert (document.text, document.metadata["text_source"], word_boxes(document)) == ("", "none", [])


@pytest.fixture
def no_ocr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "is_available", lambda: False)


@pytest.mark.usefixtures("no_ocr")
def test_missing_extra_gives_one_warning_that_names_the_pages(tmp_path: Path) -> None:
    sheets = [Sheet(scan=SCAN), Sheet(), Sheet([Text(72, 700, "A page that has a text layer")]), Sheet(scan=SCAN)]
    write_pdf(tmp_path / "a.pdf", sheets)
    SCAN.save(tmp_path / "b.png")
    with pytest.warns(MissingTextWarning) as warned:
        documents = read(tmp_path)
    (warning,) = warned
    message = str(warning.message)
    assert "3 pages (a.pdf page 1, a.pdf page 4, b.png page 1)" in message
    assert "pip install 'llama-index-colqwen[ocr]'" in message
    assert warning.filename != ocr.__file__
    assert [bool(document.text) for document in documents] == [False, False, True, False, False]


@pytest.mark.usefixtures("no_ocr")
def test_warning_does_not_list_hundreds_of_pages(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", [Sheet(scan=SCAN.resize((85, 110)))] * 25)
    with pytest.warns(MissingTextWarning, match=r"25 pages \(a\.pdf page 1, .*page 20 and 5 more\)"):
        read(path, max_pixels=2_000)


@pytest.mark.usefixtures("no_ocr")
def test_few_words_of_a_text_layer_are_kept_where_ocr_is_missing(tmp_path: Path) -> None:
    (document,) = read(write_text_pdf(tmp_path / "x.pdf", "p. 7"))
    assert (document.text, document.metadata["text_source"]) == ("p. 7", "text-layer")


@pytest.mark.usefixtures("no_ocr")
def test_always_without_the_extra_is_a_missing_dependency_that_says_how_to_install_it() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'llama-index-colqwen\[ocr\]'"):
        PDFPageReader(ocr="always")


@pytest.mark.slow
@needs_ocr
@needs_fork
def test_fork_reads_scans_after_the_parent_did(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.pdf", SCAN)
    other = write_scan(tmp_path / "other.pdf", draw_scan(LINES[1:]))
    assert [document.text.split() for document in read(scan)] == [WORDS]
    assert in_fork(lambda: [document.text.split() for document in read(other)]) == [WORDS[2:]]


FORK_AND_END = """
import os, signal, sys
from llama_index_colqwen.reading import ocr
ocr._load_engine()
child = os.fork()
if child == 0:
    signal.alarm(30)
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), os.environ.get("ORT_DISABLE_TELEMETRY"))
"""


@pytest.mark.slow
@needs_ocr
@needs_fork
def test_fork_ends_after_the_parent_loaded_ocr_which_reports_to_nobody(run_python: Callable[..., str]) -> None:
    assert run_python(FORK_AND_END).split() == ["3", "1"]
