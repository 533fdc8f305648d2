"""Turn the captioned blocks of a content file into tables, charts and sketches.

Such a block is a "### caption", a comment that says how to draw it, and the rows of a Markdown table:

    <!-- table FIRST -->        a striped table whose first column is FIRST points wide
    <!-- bar HEIGHT UNIT -->    a chart; also "line" and "stack". The first column names the places on the axis
    <!-- pie HEIGHT -->         the shares of the second column
    <!-- tiles -->              large figures with their words below
    <!-- sketch -->             the mounting on the pier, which has no rows
"""

from __future__ import annotations

import math

import reportlab.platypus as flow
from reportlab.graphics.charts.barcharts import VerticalBarChart
from reportlab.graphics.charts.legends import Legend
from reportlab.graphics.charts.linecharts import HorizontalLineChart
from reportlab.graphics.charts.piecharts import Pie
from reportlab.graphics.shapes import Drawing, Group, Line, Rect, String
from reportlab.lib.colors import HexColor, white
from reportlab.lib.styles import ParagraphStyle

NAVY, TEAL, AMBER, CORAL, SLATE, SKY = PALETTE = [
    HexColor(c) for c in ("#12355B", "#1B998B", "#E8A33D", "#D1495B", "#6B7A8F", "#8CC0DE")
]
PALE, RULE = HexColor("#EEF4F8"), HexColor("#C9D3DC")
ALL = (0, 0), (-1, -1)  # the cells of a table
Rows = list[list[str]]
Look = list[tuple[object, ...]]


def style(size: float, font: str = "Helvetica", **more: object) -> ParagraphStyle:
    """Return a paragraph style with a leading in proportion."""
    return ParagraphStyle("s", **{"fontName": font, "fontSize": size, "leading": size * 1.35} | more)


def frame(left: float, bottom: float, width: float, height: float) -> flow.Frame:
    """Return a part of the page that text fills to its edges."""
    return flow.Frame(left, bottom, width, height, leftPadding=0, rightPadding=0, topPadding=0, bottomPadding=0)


def visual(block: str, width: float) -> tuple[str, flow.Flowable]:
    """Return the caption of a block and its drawing, at most this wide."""
    caption, how, *lines = block.splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    del rows[1:2]  # the dashes below the head
    kind, _, rest = how.removeprefix("<!-- ").removesuffix(" -->").partition(" ")
    size, _, unit = rest.partition(" ")
    part: flow.Flowable
    if kind == "table":
        part = table(rows, float(size), width)
    elif kind == "tiles":
        part = tiles(rows, width)
    elif kind == "pie":
        part = pie(rows, width, float(size))
    elif kind == "sketch":
        part = pier(width)
    else:
        part = chart(kind, rows, unit, width, float(size))
    return caption.removeprefix("### "), part


def table(rows: Rows, first: float, width: float) -> flow.Table:
    """Return a striped table; a last row with a name in asterisks is a total."""
    size = 7.2 if width < 300 else 7.8 if len(rows) > 12 else 9
    look: Look = [
        ("FONT", *ALL, "Helvetica", size),
        ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", size),
        ("TEXTCOLOR", (0, 0), (-1, 0), white),
        ("BACKGROUND", (0, 0), (-1, 0), NAVY),
        ("ROWBACKGROUNDS", (0, 1), (-1, -1), [white, PALE]),
        ("LINEBELOW", (0, -1), (-1, -1), 0.8, NAVY),
        ("ALIGN", (1, 0), (-1, -1), "RIGHT"),
    ]
    look += [(f"{side}PADDING", *ALL, size * 0.36) for side in ("TOP", "BOTTOM", "LEFT", "RIGHT")]
    if rows[-1][0].startswith("**"):
        rows[-1][0] = rows[-1][0].strip("*")
        look += [("FONT", (0, -1), (-1, -1), "Helvetica-Bold", size), ("LINEABOVE", (0, -1), (-1, -1), 0.8, NAVY)]
    others = len(rows[0]) - 1
    return flow.Table(rows, colWidths=[first] + [(width - first) / others] * others, style=look)


def tiles(rows: Rows, width: float) -> flow.Table:
    """Return rows of large figures, each above its row of words."""
    look: Look = [("ALIGN", *ALL, "CENTER"), ("FONTSIZE", *ALL, 12), ("VALIGN", *ALL, "TOP"), ("TOPPADDING", *ALL, 14)]
    for row in range(0, len(rows), 2):
        look += [("FONT", (0, row), (-1, row), "Helvetica-Bold", 34), ("TEXTCOLOR", (0, row), (-1, row), NAVY)]
        look += [("BACKGROUND", (0, row), (-1, row + 1), PALE), ("LINEBELOW", (0, row + 1), (-1, row + 1), 6, white)]
    return flow.Table(rows, colWidths=[width / 2] * 2, rowHeights=[64, 66] * (len(rows) // 2), style=look)


def legend(names: list[str], x: float, y: float, size: float) -> Legend:
    """Return a one-column legend in the colours of the palette."""
    box = Legend()
    box.colorNamePairs = list(zip(PALETTE, names, strict=False))
    box.x, box.y, box.boxAnchor, box.alignment = x, y, "nw", "right"
    box.fontName, box.fontSize, box.columnMaximum = "Helvetica", size, 9
    box.dx = box.dy = size * 0.8
    box.deltay, box.strokeWidth = size * 1.5, 0
    return box


def chart(kind: str, rows: Rows, unit: str, width: float, height: float) -> Drawing:
    """Draw a "bar", "stack" or "line" chart with labelled axes and a legend on the right."""
    (axis_name, *series), *body = rows
    # A long axis has no room for every name.
    names = [row[0] if len(body) <= 12 or i % 2 == 0 else "" for i, row in enumerate(body)]
    values = [[float(row[i]) for row in body] for i in range(1, len(rows[0]))]
    size = 8.5 if width > 300 else 7
    drawing, room = Drawing(width, height), max(map(len, series)) * size * 0.5 + 26
    plot = HorizontalLineChart() if kind == "line" else VerticalBarChart()
    plot.x, plot.y, plot.width, plot.height = 42, 34, width - 46 - room, height - 44
    plot.data, plot.categoryAxis.categoryNames = values, names
    peak = max(map(sum, zip(*values, strict=True))) if kind == "stack" else max(map(max, values))
    step = next(s for s in (2, 3, 5, 10, 20, 30) if s * 5 >= peak)
    plot.valueAxis.valueMin, plot.valueAxis.valueStep = 0, step
    plot.valueAxis.valueMax = step * math.ceil(peak / step)
    plot.valueAxis.visibleGrid, plot.valueAxis.gridStrokeColor = 1, RULE
    for axis in (plot.categoryAxis, plot.valueAxis):
        axis.strokeColor, axis.labels.fontName, axis.labels.fontSize = SLATE, "Helvetica", size
    for i in range(len(series)):
        if kind == "line":
            plot.lines[i].strokeColor, plot.lines[i].strokeWidth = PALETTE[i], 2
        else:
            plot.bars[i].fillColor, plot.bars[i].strokeColor = PALETTE[i], None
    if kind != "line":
        plot.groupSpacing, plot.categoryAxis.style = 12, "stacked" if kind == "stack" else "parallel"
    if kind == "bar":
        plot.barLabelFormat, plot.barLabels.fontSize, plot.barLabels.nudge = "%g", size - 1, 6
    drawing.add(plot)
    drawing.add(String(plot.x + plot.width / 2, 6, axis_name, fontSize=size, textAnchor="middle", fillColor=SLATE))
    upright = String(0, 0, unit, fontSize=size, textAnchor="middle", fillColor=SLATE)
    drawing.add(Group(upright, transform=(0, 1, -1, 0, 10, plot.y + plot.height / 2)))
    drawing.add(legend(series, width - room + 8, height - 14, size))
    return drawing


def pie(rows: Rows, width: float, height: float) -> Drawing:
    """Draw a pie with the shares in the legend."""
    drawing, disc = Drawing(width, height), Pie()
    disc.x, disc.y, disc.width, disc.height = 50, 10, height - 20, height - 20
    disc.data = [float(value) for _, value in rows[1:]]
    for i in range(len(disc.data)):
        disc.slices[i].fillColor, disc.slices[i].strokeColor, disc.slices[i].strokeWidth = PALETTE[i], white, 1.5
    drawing.add(disc)
    shares = [f"{name}  {100 * float(value) / sum(disc.data):.1f} %" for name, value in rows[1:]]
    drawing.add(legend(shares, height + 80, height * 0.8, 10))
    return drawing


def pier(width: float) -> Drawing:
    """Draw how the five instruments hang on the pier."""
    drawing = Drawing(width, 142)
    drawing.add(Rect(0, 0, width, 52, fillColor=HexColor("#DCEBF3"), strokeColor=None))
    for x, y, w, h in ((0, 112, width, 12), (14, 0, 12, 112), (128, 0, 12, 112)):
        drawing.add(Rect(x, y, w, h, fillColor=SLATE, strokeColor=None))
    for x, y, w, h in ((56, 98, 10, 14), (86, 98, 10, 14), (27, 14, 6, 12), (35, 8, 2, 76), (119, 8, 8, 96)):
        drawing.add(Rect(x, y, w, h, fillColor=white if w == 8 else NAVY, strokeColor=NAVY))
    drawing.add(Rect(120, 48, 6, 6, fillColor=CORAL, strokeColor=None))
    for x in (61, 91):
        drawing.add(Line(x, 96, x, 54, strokeColor=TEAL, strokeDashArray=(3, 2)))
    for i in range(10):
        drawing.add(Rect(150, 4 + 9 * i, 6, 9, fillColor=(white, CORAL)[i % 2], strokeColor=CORAL, strokeWidth=0.4))
    letters = {"P": (40, 16), "C": (40, 76), "U": (69, 100), "R": (99, 100), "F": (110, 62)}
    for text, (x, y) in (letters | {"water": (66, 38), "deck with loggers": (52, 130), "staff": (144, 97)}).items():
        drawing.add(String(x, y, text, fontSize=8, fontName="Helvetica-Bold" if text in letters else "Helvetica"))
    return drawing
