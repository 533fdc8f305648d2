"""Turn paper.md into a scientific paper in two narrow columns.

The first block holds the title, the authors, their laboratory and the journal. After it "##" is a heading, "###" a
table or figure, "=" an equation, "-" a reference and "<!-- column -->" a new column; other blocks are paragraphs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import reportlab.platypus as flow
from reportlab.lib.pagesizes import A5
from reportlab.pdfgen.canvas import Canvas

from sample_drawing.visuals import frame, style, visual

COLUMN = (A5[0] - 82) / 2


def write(content: str, path: Path) -> None:
    """Write the paper."""
    front, *blocks = content.strip().split("\n\n")
    title, authors, laboratory, journal = front.removeprefix("# ").splitlines()
    story: list[flow.Flowable] = [
        flow.Paragraph(title, style(16, "Times-Bold", alignment=1, leading=19, spaceAfter=7)),
        flow.Paragraph(authors, style(11, "Times-Roman", alignment=1)),
        flow.Paragraph(laboratory, style(9.5, "Times-Italic", alignment=1)),
        flow.FrameBreak(),
        flow.NextPageTemplate("body"),
        *map(block_part, blocks),
    ]
    others = f"{authors.split(',')[0]} and others"
    doc = flow.BaseDocTemplate(str(path), pagesize=A5, invariant=1, title=title, author=others)
    first = [frame(34, 462, 2 * COLUMN + 14, 84), frame(34, 54, COLUMN, 400), frame(48 + COLUMN, 54, COLUMN, 400)]
    body = [frame(34, 54, COLUMN, 492), frame(48 + COLUMN, 54, COLUMN, 492)]
    foot = partial(draw_foot, journal)
    doc.addPageTemplates([flow.PageTemplate(n, f, onPage=foot) for n, f in (("first", first), ("body", body))])
    doc.build(story)


def block_part(block: str) -> flow.Flowable:
    """Return what one block of the content draws."""
    kind, _, rest = block.partition(" ")
    if kind == "##":
        return flow.Paragraph(rest, style(11.5, "Times-Bold", spaceBefore=7, spaceAfter=3, keepWithNext=1))
    if kind == "###":
        caption, part = visual(block, COLUMN)
        words = flow.Paragraph(caption, style(8.5, "Times-Italic", leading=10.5, spaceBefore=3, spaceAfter=5))
        if caption.startswith("Table"):
            return flow.KeepTogether([flow.Spacer(1, 4), words, part, flow.Spacer(1, 9)])
        return flow.KeepTogether([flow.Spacer(1, 6), part, words, flow.Spacer(1, 6)])
    if kind == "=":
        return flow.Paragraph(rest, style(10, "Times-Italic", alignment=1, spaceBefore=5, spaceAfter=7))
    if kind == "-":
        hanging = {"leftIndent": 14, "firstLineIndent": -14, "spaceAfter": 3}
        return flow.Paragraph(rest, style(8.5, "Times-Roman", leading=10.8, **hanging))
    if kind == "<!--":
        return flow.FrameBreak()
    return flow.Paragraph(block, style(10.4, "Times-Roman", leading=15.2, alignment=4, spaceAfter=8))


def draw_foot(journal: str, canvas: Canvas, doc: flow.BaseDocTemplate) -> None:
    """Draw the journal and the page number at the foot of a page."""
    canvas.setFont("Times-Roman", 8.5)
    canvas.drawString(34, 26, journal)
    canvas.drawRightString(A5[0] - 34, 26, str(doc.page))
