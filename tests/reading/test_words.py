"""Letters that were placed one by one -> the words that people see."""

from __future__ import annotations

from pathlib import Path

import pytest
from reportlab.pdfgen.canvas import Canvas

from tests.documents import LETTER
from tests.reading.rendered import render_pages
from tests.reading.test_text_layer import map_to_unicode

SIZE = 20


def canvas_at(path: Path) -> Canvas:
    canvas = Canvas(str(path), pagesize=LETTER, invariant=1)
    canvas.setFont("Helvetica", SIZE)
    return canvas


def draw_apart(canvas: Canvas, x: float, y: float, pieces: list[str], gaps: list[float]) -> None:
    """Draw pieces of a line, each by itself; gaps in ems come after each."""
    for piece, gap in zip(pieces, gaps, strict=True):
        canvas.drawString(x, y, piece)
        x += canvas.stringWidth(piece.strip(), "Helvetica", SIZE) + gap * SIZE


def read(path: Path) -> str:
    (page,) = render_pages(path, path.name)
    assert [word.text for word in page.words] == page.text.split()
    return page.text


def test_words_that_a_scanner_tore_apart_are_whole_and_their_boxes_too(tmp_path: Path) -> None:
    canvas = canvas_at(tmp_path / "torn.pdf")
    pieces = ["AP ", "L ", "Co ", ". ", "Pt ", "e ", "Ltd ", ". "]
    draw_apart(canvas, 72, 700, pieces, [0, 0.3, 0, 0.3, 0, 0.3, 0, 0])
    canvas.drawString(72, 600, "Nothing is torn here.")
    canvas.save()
    assert read(tmp_path / "torn.pdf") == "APL Co. Pte Ltd.\nNothing is torn here."
    (page,) = render_pages(tmp_path / "torn.pdf", "torn.pdf")
    whole = page.words[0]
    assert whole.left * LETTER[0] == pytest.approx(72, abs=2)
    assert whole.right * LETTER[0] == pytest.approx(72 + canvas.stringWidth("APL", "Helvetica", SIZE), abs=2)


def test_spaces_that_are_narrow_throughout_stay(tmp_path: Path) -> None:
    canvas = canvas_at(tmp_path / "narrow.pdf")
    for line in range(4):
        draw_apart(canvas, 72, 700 - 30 * line, ["some ", "narrow ", "words "], [0.02, 0.05, 0])
    canvas.save()
    assert read(tmp_path / "narrow.pdf") == "\n".join(["some narrow words"] * 4)


def test_letter_spaced_title_is_words(tmp_path: Path) -> None:
    canvas = canvas_at(tmp_path / "title.pdf")
    canvas.drawString(72, 700, "WHITE PAPER", charSpace=0.4 * SIZE)
    canvas.drawString(72, 600, "J F M A M J J", charSpace=SIZE)  # a chart's months are no word
    canvas.save()
    assert read(tmp_path / "title.pdf") == "WHITE PAPER\nJ F M A M J J"


def test_upside_down_words_are_in_their_order(tmp_path: Path) -> None:
    canvas = canvas_at(tmp_path / "turned.pdf")
    canvas.drawString(72, 700, "Upright heading")
    canvas.translate(500, 400)
    canvas.rotate(180)
    draw_apart(canvas, 0, 0, ["rainfall", "in", "millimetres"], [0.3, 0.3, 0])
    canvas.drawString(0, -1.5 * SIZE, "second line")
    canvas.save()
    assert read(tmp_path / "turned.pdf") == "Upright heading\nrainfall in millimetres\nsecond line"


@pytest.mark.parametrize("degrees", [90, -90])
def test_turned_words_of_a_line_are_together(tmp_path: Path, degrees: int) -> None:
    canvas = canvas_at(tmp_path / "turned.pdf")
    canvas.drawString(72, 700, "Upright heading")
    canvas.translate(300, 400)
    canvas.rotate(degrees)
    draw_apart(canvas, 0, 0, [*"rainfall", *"in", *"millimetres"], [*[0] * 7, 0.3, 0, 0.3, *[0] * 11])
    canvas.drawString(0, -1.5 * SIZE, "second line")
    canvas.save()
    assert read(tmp_path / "turned.pdf") == "Upright heading\nrainfall in millimetres\nsecond line"


# The widest letters: Japanese ones are as wide as they are high.
JAPANESE = {"W": "6771", "M": "4EAC", "@": "90FD", "%": "306E", "m": "96E8"}


def test_japanese_with_a_space_between_all_characters_is_without(tmp_path: Path) -> None:
    canvas = canvas_at(tmp_path / "spaced.pdf")
    canvas.drawString(72, 700, "W M @ % m")
    canvas.drawString(72, 600, "WM@ %m")
    canvas.save()
    map_to_unicode(tmp_path / "spaced.pdf", JAPANESE)
    assert read(tmp_path / "spaced.pdf") == "東京都の雨\n東京都 の雨"


def test_vertical_japanese_is_read_downwards(tmp_path: Path) -> None:
    canvas = canvas_at(tmp_path / "vertical.pdf")
    for x, line in ((400, "WM@%m"), (360, "%mW")):
        for number, letter in enumerate(line):
            canvas.drawCentredString(x, 700 - 1.1 * SIZE * number, letter)
    for row in range(8):  # else pdfium knows by itself that the page is written downwards
        canvas.drawString(72, 540 - SIZE * row, "a line that is written across all of the page")
    for row in range(3):  # a table's column is no line
        canvas.drawString(72, 300 - 2 * SIZE * row, "W")
    canvas.save()
    map_to_unicode(tmp_path / "vertical.pdf", JAPANESE)
    lines = [line for line in read(tmp_path / "vertical.pdf").split("\n") if not line.isascii()]
    assert lines == ["東京都の雨", "の雨東", "東", "東", "東"]


def test_control_characters_stand_for_spaces(tmp_path: Path) -> None:
    canvas = canvas_at(tmp_path / "control.pdf")
    canvas.drawString(72, 700, "AllxRightsxReserved")
    canvas.save()
    map_to_unicode(tmp_path / "control.pdf", {"x": "0001"})
    assert read(tmp_path / "control.pdf") == "All Rights Reserved"
