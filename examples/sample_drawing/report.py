"""Turn report.md into an annual report: a cover, then wide pages with text on the left and charts on the right.

The first block holds the four lines of the cover. A page is a "##" title, a lead, paragraphs, the call-out
"> number | words" and its visuals, in that order.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import reportlab.platypus as flow
from reportlab.lib.colors import HexColor, white
from reportlab.lib.pagesizes import A4, landscape
from reportlab.pdfgen.canvas import Canvas

from sample_drawing.visuals import AMBER, CORAL, NAVY, PALE, RULE, SKY, SLATE, TEAL, frame, style, visual

WIDTH, HEIGHT = landscape(A4)


def write(content: str, path: Path) -> None:
    """Write the report."""
    front, *pages = content.removeprefix("# ").split("\n## ")
    words = front.strip().splitlines()
    story: list[flow.Flowable] = [flow.NextPageTemplate("body")]
    for page in pages:
        title, lead, *blocks = page.strip().split("\n\n")
        story += [flow.PageBreak(), flow.Paragraph(title, style(27, "Helvetica-Bold", textColor=NAVY))]
        story += [flow.Paragraph(lead, style(12.5, textColor=TEAL, spaceBefore=4)), flow.FrameBreak()]
        for block in blocks:
            story += block_parts(block)
    title = " ".join(words[2:])
    doc = flow.BaseDocTemplate(str(path), pagesize=(WIDTH, HEIGHT), invariant=1, title=title)
    frames = [frame(48, 484, 746, 76), frame(48, 48, 240, 436), frame(324, 48, 470, 436)]
    foot = f"{' '.join(words[:2])}  |  {title}"
    doc.addPageTemplates(
        [
            flow.PageTemplate("cover", [frame(48, 52, 746, 500)], onPage=partial(draw_cover, words)),
            flow.PageTemplate("body", frames, onPage=partial(draw_edges, foot)),
        ]
    )
    doc.build(story)


def block_parts(block: str) -> list[flow.Flowable]:
    """Return the parts of a paragraph, a call-out or a visual."""
    if block.startswith(">"):
        number, words = block.removeprefix("> ").split(" | ")
        big = [flow.Paragraph(number, style(26, "Helvetica-Bold", textColor=CORAL))]
        big += [flow.Paragraph(words, style(10.5, textColor=NAVY))]
        look = [("BACKGROUND", (0, 0), (-1, -1), PALE), ("LINEBEFORE", (0, 0), (0, -1), 4, CORAL)]
        return [flow.Spacer(1, 10), flow.Table([[big]], colWidths=[240], style=look), flow.FrameBreak()]
    if block.startswith("###"):
        caption, part = visual(block, 470)
        above = flow.Paragraph(caption, style(10.5, "Helvetica-Bold", textColor=NAVY, spaceAfter=5))
        return [above, part, flow.Spacer(1, 12)]
    return [flow.Paragraph(block, style(12, spaceAfter=11, leading=17.5))]


def draw_cover(words: list[str], canvas: Canvas, _: flow.BaseDocTemplate) -> None:
    """Draw the sun, two cranes, a ship and waves, and the words of the cover."""
    canvas.setFillColor(NAVY)
    canvas.rect(0, 0, WIDTH, HEIGHT, stroke=0, fill=1)
    canvas.setFillColor(AMBER)
    canvas.circle(690, 330, 62, stroke=0, fill=1)
    canvas.setStrokeColor(SKY)
    canvas.setLineWidth(5)
    for x in (420, 560):
        canvas.lines([(x, 150, x, 330), (x + 46, 150, x + 46, 330), (x - 60, 330, x + 130, 330)])
        canvas.lines([(x + 23, 390, x - 60, 330), (x + 23, 390, x + 130, 330), (x + 23, 390, x + 23, 330)])
    for i in range(24):
        canvas.setFillColor((TEAL, CORAL, AMBER, SKY)[i * 7 % 4 if i % 5 else 1])
        canvas.rect(390 + 42 * (i % 8), 170 + 20 * (i // 8), 40, 18, stroke=0, fill=1)
    shapes = [(CORAL, [(350.0, 168.0), (780.0, 168.0), (745.0, 110.0), (385.0, 110.0)])]
    for depth, tint in enumerate((SKY, TEAL, HexColor("#0C2540"))):
        crest = [(x, 122 - 36 * depth + 8 * math.sin(x / 38 + 2 * depth)) for x in range(0, int(WIDTH) + 6, 6)]
        shapes.append((tint, [(0, 0), *crest, (WIDTH + 6, 0)]))
    for tint, (start, *others) in shapes:
        path = canvas.beginPath()
        path.moveTo(*start)
        for point in others:
            path.lineTo(*point)
        canvas.setFillColor(tint)
        canvas.drawPath(path, stroke=0, fill=1)
    canvas.setFillColor(white)
    owner, kind, document, year = words
    canvas.setFont("Helvetica-Bold", 42)
    canvas.drawString(56, 492, owner)
    canvas.setFont("Helvetica", 24)
    canvas.drawString(56, 450, kind)
    canvas.drawString(56, 300, document)
    canvas.setFont("Helvetica-Bold", 64)
    canvas.drawString(56, 232, year)


def draw_edges(foot: str, canvas: Canvas, doc: flow.BaseDocTemplate) -> None:
    """Draw the coloured edge, the footer and the page number."""
    canvas.setFillColor(TEAL)
    canvas.rect(0, HEIGHT - 14, WIDTH, 14, stroke=0, fill=1)
    canvas.setStrokeColor(RULE)
    canvas.line(48, 40, WIDTH - 48, 40)
    canvas.setFillColor(SLATE)
    canvas.setFont("Helvetica", 8)
    canvas.drawString(48, 27, foot)
    canvas.drawRightString(WIDTH - 48, 27, str(doc.page))
