"""Text that people see -> text that is read, with boxes where it stands."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pikepdf
import pytest
from reportlab.pdfgen.canvas import Canvas

from llama_index_colqwen import PDFPageReader, word_boxes
from llama_index_colqwen.pages import RenderedPage, WordBox
from llama_index_colqwen.reading import ocr
from llama_index_colqwen.reading.rendering import Renderer
from tests.documents import LETTER, Box, write_text_pdf
from tests.reading.rendered import render_pages


def read(path: Path, renderer: Renderer = "pdfium", *, extract_text: bool = True) -> RenderedPage:
    (page,) = render_pages(path, path.name, renderer=renderer, extract_text=extract_text)
    return page


def box(word: WordBox) -> Box:
    return word.left, word.top, word.right, word.bottom


def assert_within(word: WordBox, left: float, bottom: float, right: float, top: float) -> None:
    """Hold that a word's box is within a rectangle in points, and not a speck in it."""
    width, height = LETTER
    outer = (left / width, 1 - top / height, right / width, 1 - bottom / height)
    assert outer[0] <= word.left < word.right <= outer[2], (word, outer)
    assert outer[1] <= word.top < word.bottom <= outer[3], (word, outer)
    assert (word.right - word.left) * width > 5 and (word.bottom - word.top) * height > 5


def write_form(path: Path) -> Path:
    canvas = Canvas(str(path), pagesize=LETTER, invariant=1)
    canvas.drawString(72, 700, "Printed heading")
    form = canvas.acroForm
    form.textfield(name="name", value="Smith", x=72, y=600, width=200, height=24)
    form.listbox(name="list", value="Second", options=["First", "Second"], x=72, y=450, width=200, height=60)
    form.choice(name="choice", value="Beta", options=["Alpha", "Beta"], x=72, y=400, width=200, height=24)
    canvas.drawString(72, 300, "Printed footer")
    canvas.save()
    return path


@pytest.mark.parametrize("appearances", [True, False])
def test_what_was_filled_into_a_form_is_text_once_with_boxes(tmp_path: Path, appearances: bool) -> None:
    path = write_form(tmp_path / "form.pdf")
    if not appearances:  # as programs write forms that leave the drawing to the viewer
        with pikepdf.open(path, allow_overwriting_input=True) as pdf:
            for annotation in pdf.pages[0].Annots:
                del annotation["/AP"]
            pdf.save(path)
    page = read(path)
    assert page.text.split() == ["Printed", "heading", "Printed", "footer", "Smith", "First", "Second", "Beta"]
    words = {word.text: word for word in page.words}
    assert_within(words["Smith"], 72, 600, 272, 624)
    assert_within(words["First"], 72, 450, 272, 510)
    assert_within(words["Beta"], 72, 400, 272, 424)
    assert read(path, extract_text=False).image.tobytes() == page.image.tobytes()


@pytest.mark.parametrize("subtype", ["FreeText", "Stamp"])
def test_text_of_annotations_is_text_with_boxes(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / "notes.pdf"
    canvas = Canvas(str(path), pagesize=LETTER, invariant=1)
    canvas.drawString(72, 700, "Printed")
    canvas.save()
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        font = pikepdf.Dictionary(Type=pikepdf.Name.Font, Subtype=pikepdf.Name.Type1, BaseFont=pikepdf.Name.Helvetica)
        drawn = pdf.make_stream(b"BT /F 12 Tf 4 6 Td (Approved) Tj ET")
        drawn.Type, drawn.Subtype, drawn.BBox = pikepdf.Name.XObject, pikepdf.Name.Form, [0, 0, 120, 20]
        drawn.Resources = pikepdf.Dictionary(Font=pikepdf.Dictionary(F=font))
        annotation = pikepdf.Dictionary(
            Type=pikepdf.Name.Annot,
            Subtype=pikepdf.Name("/" + subtype),
            Rect=[300, 500, 420, 520],
            AP=pikepdf.Dictionary(N=drawn),
        )
        pdf.pages[0].Annots = pdf.make_indirect(pikepdf.Array([pdf.make_indirect(annotation)]))
        pdf.save(path)
    page = read(path)
    assert page.text.split() == ["Printed", "Approved"]
    assert_within(page.words[1], 300, 500, 420, 520)
    assert read(path, extract_text=False).image.tobytes() == page.image.tobytes()


@pytest.mark.parametrize("renderer", ["pdfium", "poppler"])
def test_form_is_read_whoever_draws_it(tmp_path: Path, renderer: Renderer) -> None:
    if renderer == "poppler":
        pytest.importorskip("pdf2image", reason="the [poppler] extra is not installed")
    assert "Smith" in read(write_form(tmp_path / "form.pdf"), renderer).text


def test_checkbox_whose_appearance_is_missing_ends_nothing(tmp_path: Path) -> None:
    canvas = Canvas(whole := io.BytesIO(), pagesize=LETTER)
    canvas.drawString(72, 750, "Printed")
    canvas.acroForm.checkbox(name="yes", x=72, y=700)
    canvas.acroForm.textfield(name="name", value="Smith", x=72, y=600, width=200, height=24)
    canvas.save()
    missing = pikepdf.Dictionary(Missing="")
    with pikepdf.open(whole) as pdf:
        checkbox = pdf.pages[0].Annots[0]
        del checkbox.AS  # without it pdfium's flattening takes the first appearance, and ends the process if it is null
        checkbox.AP = pikepdf.Dictionary(N=pikepdf.Dictionary(Off=pdf.make_indirect(missing)))
        pdf.save(tmp_path / "form.pdf", compress_streams=False, object_stream_mode=pikepdf.ObjectStreamMode.disable)
    data = (tmp_path / "form.pdf").read_bytes()
    damaged = re.sub(rb"/Off \d+ 0 R", b"/Off 99 0 R", data)
    assert damaged != data
    (page,) = render_pages(damaged, "form.pdf")
    assert page.text.split() == ["Printed", "Smith"]


def test_word_that_stands_beyond_all_numbers_is_text_without_a_place(tmp_path: Path) -> None:
    path = write_text_pdf(tmp_path / "x.pdf", "hello there")
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        page = pdf.pages[0]
        page.Contents = pdf.make_stream(b"12 14.4 12 14.4 0 0 cm " * 40 + page.Contents.read_bytes())
        pdf.save(path)
    (document,) = PDFPageReader(ocr="never").load_data(path)
    assert document.text == "hello there"
    words = word_boxes(document)
    assert [(word.text, *box(word)) for word in words] == [("hello", 0, 0, 0, 0), ("there", 0, 0, 0, 0)]


def map_to_unicode(path: Path, mapped: dict[str, str]) -> None:
    """Have letters of a page's fonts stand for other characters, given by their code in hexadecimal digits."""
    pairs = "\n".join(f"<{ord(letter):02X}> <{code}>" for letter, code in mapped.items())
    cmap = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def\n"
        f"1 begincodespacerange <00> <FF> endcodespacerange\n{len(mapped)} beginbfchar\n{pairs}\nendbfchar\n"
        "endcmap end end"
    )
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        for font in pdf.pages[0].Resources.Font.values():
            font.ToUnicode = pdf.make_stream(cmap.encode())
        pdf.save(path)


def write_with_unicode_map(path: Path, string: str, mapped: dict[str, str]) -> Path:
    """Write a line whose font says of some letters that they are others, given as UTF-16 in hex."""
    canvas = Canvas(str(path), pagesize=LETTER, invariant=1)
    canvas.setFont("Helvetica", 24)
    canvas.drawString(72, 700, string)
    canvas.save()
    map_to_unicode(path, mapped)
    return path


@pytest.mark.parametrize("code", ["0001", "E123", "FFFD"], ids=["control", "private", "replacement"])
def test_text_layer_with_a_fifth_of_rubbish_is_none(tmp_path: Path, code: str) -> None:
    path = write_with_unicode_map(tmp_path / "rubbish.pdf", "aaaabaaaab" * 4, {"b": code})
    page = read(path)
    assert (page.words, page.text) == ([], "")


def test_page_with_a_rubbish_text_layer_says_that_it_has_none(tmp_path: Path) -> None:
    path = write_with_unicode_map(tmp_path / "rubbish.pdf", "settling basin", {letter: "0001" for letter in "aeint"})
    (document,) = PDFPageReader(ocr="never").load_data(path)
    assert (document.text, document.metadata["text_source"]) == ("", "none")


@pytest.mark.skipif(not ocr.is_available(), reason="the [ocr] extra is not installed")
def test_page_with_a_rubbish_text_layer_is_read_by_ocr(tmp_path: Path) -> None:
    path = write_with_unicode_map(tmp_path / "rubbish.pdf", "settling basin", {letter: "0001" for letter in "aeint"})
    (document,) = PDFPageReader().load_data(path)
    assert (document.text, document.metadata["text_source"]) == ("settling basin", "ocr")


def test_text_layer_with_less_rubbish_is_text(tmp_path: Path) -> None:
    page = read(write_with_unicode_map(tmp_path / "bullet.pdf", "aaaaabaaaaa", {"b": "E123"}))
    assert page.text == "aaaaa\ue123aaaaa"
