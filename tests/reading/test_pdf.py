from __future__ import annotations

import importlib.util
import re
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pikepdf
import pytest
from PIL import Image
from reportlab.lib.colors import red, white
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

from llama_index_colqwen import PDFPageReader
from llama_index_colqwen.errors import DocumentError, EncryptedDocumentError, UnreadableDocumentError
from llama_index_colqwen.nodes import page_from_node
from llama_index_colqwen.pages import RenderedPage, WordBox
from llama_index_colqwen.reading.redraw import size_in_points
from llama_index_colqwen.reading.rendering import DEFAULT_MAX_PIXELS, render_document
from llama_index_colqwen.reading.text_layer import _character
from tests.documents import (
    Box,
    Sheet,
    Text,
    colour_name,
    corner_colours,
    quadrants,
    write_pdf,
    write_raw_pdf,
    write_text_pdf,
)
from tests.reading.rendered import render_pages

needs_poppler = pytest.mark.skipif(
    shutil.which("pdftoppm") is None or importlib.util.find_spec("pdf2image") is None,
    reason="poppler's programs or pdf2image are not installed",
)
RENDERERS = ["pdfium", pytest.param("poppler", marks=needs_poppler)]
CROP = (50.0, 60.0, 500.0, 700.0)
STREAM = b"<</Length %d>>stream\n%s\nendstream"


def render(path: Path, **options: Any) -> list[RenderedPage]:  # noqa: ANN401
    return list(render_pages(path, path.name, **options))


def corners(word: WordBox) -> Box:
    return word.left, word.top, word.right, word.bottom


def ink(image: Image.Image) -> npt.NDArray[np.bool_]:
    """Bool, shape (height, width): where the page is dark."""
    return np.asarray(image.convert("L")) < 128


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two images of one size, in grey levels of 255."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)).mean())


@pytest.mark.parametrize("crop", [None, CROP])
@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_word_boxes_lie_where_the_words_were_drawn(
    tmp_path: Path, rotate: int, crop: tuple[float, float, float, float] | None
) -> None:
    texts = [Text(100, 600, "ALPHA"), Text(300, 100, "BETA", 12)]
    sheet = Sheet(texts, rotate=rotate, crop=crop)
    (page,) = render(write_pdf(tmp_path / "x.pdf", [sheet]))
    assert [word.text for word in page.words] == ["ALPHA", "BETA"] == page.text.split()
    for word, text in zip(page.words, texts, strict=True):
        assert corners(word) == pytest.approx(sheet.box_of(text), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("crop", [None, CROP])
@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("renderer", RENDERERS)
def test_ink_lies_in_the_word_boxes_and_nowhere_else(
    tmp_path: Path, renderer: str, rotate: int, crop: tuple[float, float, float, float] | None
) -> None:
    sheet = Sheet([Text(100, 600, "ALPHA"), Text(300, 100, "BETA")], rotate=rotate, crop=crop)
    (page,) = render(write_pdf(tmp_path / "x.pdf", [sheet]), renderer=renderer)
    dark = ink(page.image)
    for word in page.words:
        left, right = (round(edge * page.image.width) for edge in (word.left, word.right))
        top, bottom = (round(edge * page.image.height) for edge in (word.top, word.bottom))
        assert 0.15 < dark[top:bottom, left:right].mean() < 0.6
        dark[max(0, top - 8) : bottom + 8, max(0, left - 8) : right + 8] = False
    assert not dark.any()


@pytest.mark.parametrize("string", ["HXH", "amble", "napkin", "agree", "openly"])
def test_word_box_holds_all_letters_of_the_word(tmp_path: Path, string: str) -> None:
    (page,) = render(write_pdf(tmp_path / "x.pdf", [Sheet([Text(72, 400, string, 60)])]))
    rows, columns = np.nonzero(ink(page.image))
    drawn = (
        columns.min() / page.image.width,
        rows.min() / page.image.height,
        (columns.max() + 1) / page.image.width,
        (rows.max() + 1) / page.image.height,
    )
    assert corners(page.words[0]) == pytest.approx(drawn, abs=0.005)


def test_words_on_one_line_have_boxes_side_by_side(tmp_path: Path) -> None:
    (page,) = render(write_text_pdf(tmp_path / "x.pdf", "one two  three"))
    assert [word.text for word in page.words] == ["one", "two", "three"]
    assert page.words[0].right < page.words[1].left < page.words[1].right < page.words[2].left
    for word in page.words:
        assert 0 <= word.left < word.right <= 1 and 0 <= word.top < word.bottom <= 1


def test_lines_are_separated_by_line_ends(tmp_path: Path) -> None:
    (page,) = render(write_pdf(tmp_path / "x.pdf", [Sheet([Text(72, 700, "first line"), Text(72, 660, "second")])]))
    assert page.text == "first line\nsecond"


def test_word_hyphenated_over_two_lines_is_one_word_boxed_at_its_first_half(tmp_path: Path) -> None:
    first = Text(72, 700, "applica-")
    sheet = Sheet([first, Text(72, 670, "tions follow")])
    (page,) = render(write_pdf(tmp_path / "x.pdf", [sheet]))
    assert page.text.split() == [word.text for word in page.words] == ["applications", "follow"]
    box, expected = page.words[0], sheet.box_of(first)
    assert expected[1] - 0.01 < box.top < box.bottom < 0.125, "the box reaches into the second line"
    assert box.left == pytest.approx(expected[0], abs=0.01)
    assert expected[2] - 0.02 < box.right < expected[2] + 0.005


def test_hyphen_within_a_line_and_at_the_end_of_the_text_stays(tmp_path: Path) -> None:
    (page,) = render(write_text_pdf(tmp_path / "x.pdf", "well-known trail-"))
    assert page.text == "well-known trail-"


def test_letters_outside_the_basic_plane_stay(tmp_path: Path) -> None:
    # U+1D400, a bold mathematical A, as word processors write variables; pdfium reports it as two surrogates.
    cmap = b"""/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def
        1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfchar <41> <D835DC00> endbfchar endcmap end end"""
    content = b"BT /F 40 Tf 72 700 Td (xAy end) Tj ET"
    path = write_raw_pdf(
        tmp_path / "x.pdf",
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>",
        STREAM % (len(content), content),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/ToUnicode 6 0 R>>",
        STREAM % (len(cmap), cmap),
    )
    (page,) = render(path)
    assert page.text == "x\U0001d400y end"
    assert [word.text for word in page.words] == ["x\U0001d400y", "end"]


@pytest.mark.parametrize(
    "name", ["federal-register-2020-17221.pdf", "ca-warn-report.pdf", "nics-background-checks-2015-11-rotated.pdf"]
)
def test_words_of_real_pages_align_with_their_text_and_lie_on_the_page(sample_pdfs: Path, name: str) -> None:
    for page in render(sample_pdfs / name, max_pixels=10_000)[:5]:
        assert len(page.words) > 100
        assert [word.text for word in page.words] == page.text.split()
        inside = [0 <= word.left <= word.right <= 1 and 0 <= word.top <= word.bottom <= 1 for word in page.words]
        assert sum(inside) / len(inside) > 0.98


def test_extract_text_false_draws_the_page_and_reads_nothing(tmp_path: Path) -> None:
    (page,) = render(write_text_pdf(tmp_path / "x.pdf", "Hello"), extract_text=False)
    assert (page.words, page.text) == ([], "")
    assert ink(page.image).any()


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize(
    ("points", "pixels"),
    [
        pytest.param((612, 792), (1275, 1650), id="letter-at-150-dpi"),
        pytest.param((792, 612), (1650, 1275), id="landscape"),
        pytest.param((14400, 14400), (1450, 1450), id="poster-of-200-inch"),
        pytest.param((252, 144), (1050, 600), id="business-card-at-300-dpi"),
        pytest.param((1, 720), (4, 3000), id="strip-of-1-point"),
        pytest.param((1, 1), (4, 4), id="dot"),
    ],
)
def test_page_is_drawn_to_the_pixel_target_whatever_its_size(
    tmp_path: Path, points: tuple[float, float], pixels: tuple[int, int], renderer: str
) -> None:
    (page,) = render(write_pdf(tmp_path / "x.pdf", [Sheet(size=points)]), renderer=renderer)
    assert page.image.size == pixels
    assert page.image.mode == "RGB"
    assert pixels[0] * pixels[1] <= DEFAULT_MAX_PIXELS
    assert corner_colours(page.image) == ["white"] * 4


@pytest.mark.parametrize("max_pixels", [1, 2, 1000, 123_457])
@pytest.mark.parametrize("size", [(612, 792), (14400, 14400), (1, 14400), (14400, 1), (30, 30)])
def test_max_pixels_is_never_exceeded(tmp_path: Path, size: tuple[float, float], max_pixels: int) -> None:
    (page,) = render(write_pdf(tmp_path / "x.pdf", [Sheet(size=size)]), max_pixels=max_pixels)
    assert 1 <= page.image.width * page.image.height <= max_pixels


def test_page_fills_the_target_and_keeps_its_proportions(tmp_path: Path) -> None:
    (page,) = render(write_pdf(tmp_path / "x.pdf", [Sheet(size=(600, 1200))]), max_pixels=500_000)
    assert page.image.size == (500, 1000)


def write_form(path: Path, value: str) -> Path:
    canvas = Canvas(str(path), pagesize=(612, 792), invariant=1)
    canvas.acroForm.textfield(
        value=value, name="field", x=100, y=600, width=300, height=40, fontSize=30, textColor=red, fillColor=white
    )
    canvas.showPage()
    canvas.save()
    return path


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize(("value", "filled"), [("FILLED", True), ("", False)])
def test_values_typed_into_form_fields_are_drawn(tmp_path: Path, renderer: str, value: str, filled: bool) -> None:
    (page,) = render(write_form(tmp_path / "form.pdf", value), renderer=renderer)
    pixels = np.asarray(page.image, dtype=int)
    is_red = (pixels[..., 0] > 200) & (pixels[..., 1] < 80) & (pixels[..., 2] < 80)
    assert bool(is_red.sum() > 500) is filled
    if filled:
        rows, columns = np.nonzero(is_red)
        assert columns.min() / 1275 > 100 / 612 and columns.max() / 1275 < 400 / 612
        assert rows.min() / 1650 > (792 - 640) / 792 and rows.max() / 1650 < (792 - 600) / 792


def test_page_labels_are_the_documents_own_else_the_number(tmp_path: Path) -> None:
    canvas = Canvas(str(tmp_path / "x.pdf"))
    canvas.addPageLabel(0, "ROMAN_LOWER", 3)
    canvas.addPageLabel(2, "ARABIC", 1, "A-")
    for _ in range(4):
        canvas.showPage()
    canvas.save()
    pages = render(tmp_path / "x.pdf", max_pixels=100)
    assert [(page.page_number, page.page_label) for page in pages] == [(1, "iii"), (2, "iv"), (3, "A-1"), (4, "A-2")]
    plain = write_pdf(tmp_path / "y.pdf", [Sheet(), Sheet()])
    assert [page.page_label for page in render(plain, max_pixels=100)] == ["1", "2"]


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("password", [None, "wrong"])
def test_encrypted_pdf_without_the_right_password_names_the_file(
    tmp_path: Path, renderer: str, password: str | None
) -> None:
    path = write_text_pdf(tmp_path / "secret.pdf", "Hello", password="geheim")
    problem = "wrong" if password else "encrypted.*password="
    with pytest.raises(EncryptedDocumentError, match=rf"^secret\.pdf: .*{problem}") as raised:
        render(path, renderer=renderer, password=password)
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("password", ["geheim", "owner-geheim"], ids=["user-password", "owner-password"])
def test_encrypted_pdf_opens_with_either_password(tmp_path: Path, renderer: str, password: str) -> None:
    path = write_text_pdf(tmp_path / "secret.pdf", "Hello", password="geheim")
    for source in (path, path.read_bytes()):
        (page,) = render_pages(source, path.name, renderer=renderer, password=password)
        assert page.text == "Hello"
        assert ink(page.image).any()


@pytest.mark.parametrize("renderer", RENDERERS)
def test_password_does_no_harm_to_a_pdf_without_one(tmp_path: Path, renderer: str) -> None:
    assert render(write_text_pdf(tmp_path / "x.pdf", "Hello"), renderer=renderer, password="x")[0].text == "Hello"


@pytest.mark.parametrize(
    ("before", "error"),
    [("encrypted.pdf", EncryptedDocumentError), ("garbage.pdf", UnreadableDocumentError)],
)
def test_pdf_without_pages_is_unreadable_whatever_failed_before(
    tmp_path: Path, before: str, error: type[DocumentError]
) -> None:
    # pdfium reports its last error, which it does not set for a PDF without pages.
    write_text_pdf(tmp_path / "encrypted.pdf", "Hello", password="geheim")
    (tmp_path / "garbage.pdf").write_bytes(b"%PDF-1.7 garbage")
    path = write_raw_pdf(tmp_path / "none.pdf", b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count 0>>")
    with pytest.raises(error):
        render(tmp_path / before)
    with pytest.raises(UnreadableDocumentError, match=r"^none\.pdf: "):
        render(path)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("second", [b"null", b"7"])  # of other dictionaries, some versions of pdfium make empty pages
def test_page_that_is_none_is_an_error_in_its_place_and_the_others_are_read(
    tmp_path: Path, second: bytes, renderer: str
) -> None:
    path = write_raw_pdf(
        tmp_path / "torn.pdf",
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R 4 0 R 3 0 R]/Count 3>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]>>",
        second,
    )
    first, bad, third = render_document(path, path.name, renderer=renderer, max_pixels=1000)  # type: ignore[arg-type]
    assert isinstance(first, RenderedPage)
    assert isinstance(third, RenderedPage)
    assert (first.page_number, third.page_number) == (1, 3)
    assert isinstance(bad, UnreadableDocumentError)
    assert str(bad).startswith("torn.pdf: page 2 is missing or corrupt")


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("box", [b"0 0 1e30 1e30", b"0 0 1e20 1", b"0 0 0 0", b"0 0 1e-30 1e-30"])
def test_page_of_an_absurd_size_is_drawn_or_an_error_and_the_next_is_read(
    tmp_path: Path, box: bytes, renderer: str
) -> None:
    path = write_raw_pdf(
        tmp_path / "odd.pdf",
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R 4 0 R]/Count 2>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[%s]>>" % box,
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]>>",
    )
    odd, page = render_document(path, path.name, renderer=renderer, max_pixels=1000)  # type: ignore[arg-type]
    assert isinstance(odd, (RenderedPage, UnreadableDocumentError))
    assert isinstance(page, RenderedPage)


@needs_poppler
def test_file_that_pdfium_does_not_open_is_drawn_by_poppler(tmp_path: Path) -> None:
    path = write_text_pdf(tmp_path / "headless.pdf", "first", "second")
    sizes = [page.image.size for page in render(path, max_pixels=10_000)]
    path.write_bytes(path.read_bytes().replace(b"%PDF-", b"%XXX-", 1))
    with pytest.raises(UnreadableDocumentError, match=r"^headless\.pdf: .*renderer='poppler'"):
        render(path)
    pages = render(path, renderer="poppler", max_pixels=10_000)
    assert [(page.page_number, page.image.size, page.text) for page in pages] == [(1, sizes[0], ""), (2, sizes[1], "")]
    assert all(page.image.getextrema() != ((255, 255),) * 3 for page in pages)


@needs_poppler
def test_page_that_poppler_alone_finds_missing_is_an_error_in_its_place(tmp_path: Path) -> None:
    path = write_text_pdf(tmp_path / "headless.pdf", "first", "second", "third")
    data = path.read_bytes().replace(b"%PDF-", b"%XXX-", 1)  # pdfium does not open it
    data, found = re.subn(rb"(/Kids \[ \d+ 0 R) \d+ 0 R", rb"\1 99 0 R", data)
    assert found == 1
    # poppler counts three pages, and finds two
    first, third, missing = render_document(data, "headless.pdf", renderer="poppler", max_pixels=1000)
    assert isinstance(first, RenderedPage)
    assert isinstance(third, RenderedPage)
    assert isinstance(missing, UnreadableDocumentError)
    assert str(missing) == "headless.pdf: page 3 is corrupt (its size is 0.0 x 0.0 points)."


@needs_poppler
def test_error_over_what_poppler_cannot_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.pdf"
    path.write_bytes(b"%PDF-1.4")  # over which poppler says several lines
    with pytest.raises(UnreadableDocumentError) as raised:
        render(path, renderer="poppler")
    assert re.fullmatch(r"x\.pdf: poppler cannot read the PDF \(.*\)\.", str(raised.value))


@pytest.mark.parametrize(("code", "character"), [(65, "A"), (0, " "), (0x10FFFF, "\U0010ffff"), (0x110000, "\ufffd")])
def test_code_that_is_no_characters_is_read_around(code: int, character: str) -> None:
    assert _character(code) == character


def test_page_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = write_raw_pdf(
        tmp_path / "torn.pdf",
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R 9 0 R]/Count 2>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]>>",
    )
    with pytest.raises(UnreadableDocumentError, match=r"^torn\.pdf: page 2 is missing or corrupt"):
        render(path)


@pytest.mark.parametrize("kept", [0.02, 0.25, 0.5, 0.75, 0.9, 0.99])
def test_truncated_pdf_is_unreadable_or_read_whole(tmp_path: Path, kept: float) -> None:
    data = write_text_pdf(tmp_path / "x.pdf", *["words on a page"] * 20).read_bytes()
    pages: list[RenderedPage] = []
    try:
        pages.extend(render_pages(data[: int(len(data) * kept)], "cut.pdf", max_pixels=100))
    except DocumentError as error:
        assert isinstance(error, UnreadableDocumentError)
        assert str(error).startswith("cut.pdf: ")
    else:
        assert [page.text for page in pages] == ["words on a page"] * 20
    assert pages == [] or kept > 0.9


def test_truncated_real_pdf_is_unreadable(sample_pdfs: Path) -> None:
    with pytest.raises(UnreadableDocumentError, match=r"^truncated-federal-register\.pdf: .*truncated"):
        render(sample_pdfs / "truncated-federal-register.pdf")


QUADRANTS = quadrants((600, 800))
SIZES: Sequence[tuple[float, float]] = [(612, 792)] * 10 + [(792, 612), (612, 792), (300, 300), (300, 300)]
MIXED = [Sheet([Text(50, 250, f"PAGE {n}")], size, scan=QUADRANTS) for n, size in enumerate(SIZES, start=1)]
TURNED = [
    Sheet([Text(100, 600, "TURNED")], rotate=rotate, crop=crop, scan=QUADRANTS)
    for rotate in (0, 90, 180, 270)
    for crop in (None, CROP)
]


@needs_poppler
@pytest.mark.parametrize("sheets", [MIXED, TURNED], ids=["mixed-sizes", "rotated-and-cropped"])
@pytest.mark.parametrize("password", [None, "geheim"])
def test_poppler_draws_what_pdfium_draws(tmp_path: Path, password: str | None, sheets: Sequence[Sheet]) -> None:
    path = write_pdf(tmp_path / "x.pdf", sheets, StandardEncryption(password) if password else None)
    by_pdfium = render(path, max_pixels=60_000, password=password)
    by_poppler = render(path, max_pixels=60_000, password=password, renderer="poppler")
    assert len(by_pdfium) == len(by_poppler) == len(sheets)
    different = [
        (sheet.rotate, sheet.crop, one.image.size, other.image.size)
        for sheet, one, other in zip(sheets, by_pdfium, by_poppler, strict=True)
        if one.image.size != other.image.size or mean_difference(one.image, other.image) > 3
    ]
    assert not different
    for one, other in zip(by_pdfium, by_poppler, strict=True):
        assert (one.page_number, one.page_label, one.text, one.words) == (
            other.page_number,
            other.page_label,
            other.text,
            other.words,
        )


@needs_poppler
@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("odd-boxes-crop-rot270.pdf", None),
        ("odd-boxes-inverted-mediabox.pdf", None),
        ("nics-background-checks-2015-11-rotated.pdf", None),
        ("scanned-rotated-4p.pdf", None),
        ("encrypted-password-test.pdf", "test"),
    ],
)
def test_poppler_draws_real_pages_as_pdfium_does(sample_pdfs: Path, name: str, password: str | None) -> None:
    path = sample_pdfs / name
    by_pdfium = render(path, max_pixels=100_000, password=password)
    by_poppler = render(path, max_pixels=100_000, password=password, renderer="poppler")
    assert len(by_pdfium) == len(by_poppler) > 0
    for one, other in zip(by_pdfium, by_poppler, strict=True):
        assert one.image.size == other.image.size
        upside_down = other.image.rotate(180)
        assert mean_difference(one.image, other.image) < 0.6 * mean_difference(one.image, upside_down)


@needs_poppler
def test_poppler_reads_bytes_as_it_reads_files(tmp_path: Path) -> None:
    path = write_text_pdf(tmp_path / "x.pdf", "one", "two")
    from_bytes = list(render_pages(path.read_bytes(), "x.pdf", renderer="poppler", max_pixels=10_000))
    from_file = render(path, renderer="poppler", max_pixels=10_000)
    assert [page.image.tobytes() for page in from_bytes] == [page.image.tobytes() for page in from_file]


def test_two_threads_reading_two_pdfs_at_once_get_their_own_pages(tmp_path: Path) -> None:
    colours = ["red", "blue"]
    paths = [
        write_pdf(
            tmp_path / f"{colour}.pdf",
            [Sheet([Text(72, 700, f"{colour} {n}")], scan=Image.new("RGB", (8, 8), colour)) for n in range(30)],
        )
        for colour in colours
    ]
    together = threading.Barrier(2)

    def read(path: Path) -> list[tuple[str, str]]:
        together.wait(timeout=30)
        return [(page.text, colour_name(page.image, (5, 5))) for page in render(path, max_pixels=50_000)]

    with ThreadPoolExecutor(2) as pool:
        for colour, found in zip(colours, pool.map(read, paths), strict=True):
            assert found == [(f"{colour} {n}", colour) for n in range(30)]


def test_pages_of_two_pdfs_read_alternately_do_not_mix(tmp_path: Path) -> None:
    one = render_pages(write_text_pdf(tmp_path / "a.pdf", "a1", "a2"), "a.pdf", max_pixels=100)
    other = render_pages(write_text_pdf(tmp_path / "b.pdf", "b1", "b2"), "b.pdf", max_pixels=100)
    assert [page.text for pair in zip(one, other, strict=True) for page in pair] == ["a1", "b1", "a2", "b2"]


def test_the_size_of_a_page_is_that_of_the_page_as_it_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "pages.pdf"
    with pikepdf.new() as pdf:
        for size in ((612, 792), (500, 300)):
            pdf.add_blank_page(page_size=size)
        pdf.pages[1].Rotate = 90
        pdf.pages[1].CropBox = [10, 20, 410, 220]
        pdf.save(path)
        pdf.save(tmp_path / "encrypted.pdf", encryption=pikepdf.Encryption(owner="o", user="u"))
    plain, turned = PDFPageReader(ocr="never").load_data(path)
    assert size_in_points(page_from_node(plain)) == (612, 792)
    assert size_in_points(page_from_node(turned)) == (200, 400)
    missing = replace(page_from_node(plain), page_number=3)
    assert size_in_points(missing) is None
    [encrypted, _] = PDFPageReader(ocr="never", password="u").load_data(tmp_path / "encrypted.pdf")
    assert size_in_points(page_from_node(encrypted)) is None
    path.write_bytes(path.read_bytes() + b"\n")  # another file by now
    assert size_in_points(page_from_node(plain)) is None
    path.unlink()
    assert size_in_points(page_from_node(plain)) is None
