"""PDFs that pdfium never finishes -> an error in time, and all others are read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pikepdf
import pytest

from llama_index_colqwen.reading.time_limit import PDFIUM_LOCK, in_time
from tests.documents import write_text_pdf
from tests.forks import needs_fork


def write_endless_form(path: Path, *texts: str) -> Path:
    """A form whose fields form a chain, each with its one kid twice: 2^60 ways to its end."""
    write_text_pdf(path, *texts)
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        field = pdf.make_indirect(pikepdf.Dictionary(T="end", FT=pikepdf.Name.Tx))
        for number in range(60):
            field = pdf.make_indirect(pikepdf.Dictionary(T=f"f{number}", Kids=[field, field]))
        pdf.Root.AcroForm = pikepdf.Dictionary(Fields=[field])
        pdf.save(path)
    return path


def write_endless_page(path: Path, *texts: str) -> Path:
    """Pages of which the second draws a picture that draws one twice that draws one twice, and so on."""
    write_text_pdf(path, *texts)
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        drawn = pdf.make_stream(b"0 0 9 9 re f")
        drawn.Type, drawn.Subtype, drawn.BBox = pikepdf.Name.XObject, pikepdf.Name.Form, [0, 0, 99, 99]
        for _ in range(25):
            twice = pdf.make_stream(b"/X Do /X Do")
            twice.Type, twice.Subtype, twice.BBox = pikepdf.Name.XObject, pikepdf.Name.Form, [0, 0, 99, 99]
            twice.Resources = pikepdf.Dictionary(XObject=pikepdf.Dictionary(X=drawn))
            drawn = twice
        page = pdf.pages[1]
        page.Resources.XObject = pikepdf.Dictionary(X=drawn)
        page.Contents = pdf.make_stream(page.Contents.read_bytes() + b" /X Do")
        pdf.save(path)
    return path


READ = """
import sys, time, warnings
from llama_index_colqwen import PDFPageReader
if __name__ == "__main__":
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        reader = PDFPageReader(on_error="skip", ocr="never", page_timeout=0.5, num_workers=int(sys.argv[2]))
        print([page.text for page in reader.load_data(sys.argv[1])])
    print(*(warning.message for warning in said))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_form_that_never_ends_is_one_bad_file(tmp_path: Path, workers: int, run_python: Callable[..., str]) -> None:
    write_text_pdf(tmp_path / "a.pdf", "first file")
    write_endless_form(tmp_path / "b.pdf", *["endless"] * 9)  # at every page
    write_text_pdf(tmp_path / "c.pdf", "third file", "its second page")
    pages, said = run_python(READ, tmp_path, workers).splitlines()
    assert pages == "['first file', 'third file', 'its second page']"
    assert "1 of 3 files" in said
    assert "b.pdf: page 1 took pdfium more than 0.5 s (page_timeout)." in said
    parts = workers  # of 8 pages for worker processes; the second late page of each is the last
    assert f"(The same is true of {parts} more of its pages.)" in said


@pytest.mark.slow
def test_page_that_never_ends_is_one_bad_page(tmp_path: Path, run_python: Callable[..., str]) -> None:
    write_endless_page(tmp_path / "b.pdf", "first", "second", "third")
    pages, said = run_python(READ, tmp_path, 1).splitlines()
    assert pages == "['first', 'third']"
    assert "b.pdf: page 2 took pdfium more than 0.5 s (page_timeout)." in said


FORK = """
import sys
from llama_index_colqwen import DocumentError, PDFPageReader
from tests.forks import in_fork
if __name__ == "__main__":
    reader = PDFPageReader(ocr="never", page_timeout=0.5)
    try:
        reader.load_data(sys.argv[1])
    except DocumentError as error:
        print(error)
    print(in_fork(lambda: [page.text for page in reader.load_data(sys.argv[2])]))
"""


@needs_fork
@pytest.mark.slow
def test_process_that_has_lost_pdfium_can_be_forked(tmp_path: Path, run_python: Callable[..., str]) -> None:
    bad, good = write_endless_form(tmp_path / "b.pdf", "endless"), write_text_pdf(tmp_path / "g.pdf", "good")
    said = run_python(FORK, bad, good).splitlines()
    assert said == ["b.pdf: page 1 took pdfium more than 0.5 s (page_timeout).", "['good']"]


def test_waiting_for_others_is_not_being_late(tmp_path: Path) -> None:
    def numbers() -> Iterator[int]:
        for number in range(3):
            with PDFIUM_LOCK:
                yield number

    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with PDFIUM_LOCK:
            entered.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(30)
    threading.Timer(1.0, leave.set).start()
    assert list(in_time(numbers, 0.3)) == [0, 1, 2]
    holder.join()


def test_errors_and_closing_are_those_of_the_iteration(tmp_path: Path) -> None:
    closed: list[threading.Thread] = []

    def items() -> Iterator[int]:
        try:
            yield 1
            raise ValueError("mine")
        finally:
            closed.append(threading.current_thread())

    iteration = in_time(items, 9)
    assert next(iteration) == 1
    with pytest.raises(ValueError, match="mine"):
        next(iteration)
    again = in_time(items, 9)
    assert next(again) == 1
    again.close()
    assert len(closed) == 2
    assert threading.current_thread() not in closed
