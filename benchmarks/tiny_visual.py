"""PDFs with figures of other making -> whether the tiny ColQwen2 of `examples/tiny_visual` finds them by words.

    python benchmarks/tiny_visual.py [--folder KEPT] [--max-visual-tokens 768]

A page a figure, with text above and below, in six colours: charts, tables, diagrams, stamps and signatures of
reportlab, and charts of matplotlib, as these libraries draw them. Nothing of it was seen in training. Pages are read by
`PDFPageReader` and asked for as "the page with a red pie chart"; right is a first page that has one. Of the pages found
rightly, "region in box" counts those of which the first region of `index.explain` has its middle in the figure.
Needs the extra `[colqwen]`, reportlab and matplotlib. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from reportlab.graphics import renderPDF, shapes
from reportlab.graphics.charts.barcharts import VerticalBarChart
from reportlab.graphics.charts.linecharts import HorizontalLineChart
from reportlab.graphics.charts.lineplots import ScatterPlot
from reportlab.graphics.charts.piecharts import Pie
from reportlab.lib.colors import HexColor, white
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Table
from rich.console import Console
from rich.table import Table as Shown

from llama_index_colqwen import ColQwenEmbedder, ColQwenIndex, PDFPageReader

COLOURS = {
    "red": "#d62728",
    "green": "#2ca02c",
    "blue": "#1f77b4",
    "orange": "#ff7f0e",
    "purple": "#9467bd",
    "black": "#222222",
}
WIDTH, HEIGHT = 320, 220  # of a figure, in points
CHECKPOINT = Path(__file__).parents[1] / "examples" / "tiny_visual" / "checkpoint"
LINE = "The harbour office counted arrivals and departures by month, and the committee compared them with the budget. "


def chart_of_reportlab(kind: str, colour: str, rng: random.Random) -> shapes.Drawing:
    """Draw a chart with reportlab's own classes."""
    drawing = shapes.Drawing(WIDTH, HEIGHT)
    values = [rng.randint(10, 100) for _ in range(rng.randint(4, 8))]
    chart: Any
    if kind == "pie chart":
        chart = Pie()
        chart.data, side = values[:4], HEIGHT - 30
        chart.x, chart.y, chart.width, chart.height = (WIDTH - side) / 2, 15, side, side
        for number in range(4):
            chart.slices[number].fillColor = HexColor(colour).clone(alpha=1 - 0.2 * number)
            chart.slices[number].strokeColor = white
    else:
        chart = {"bar chart": VerticalBarChart, "line chart": HorizontalLineChart, "scatter plot": ScatterPlot}[kind]()
        chart.x, chart.y, chart.width, chart.height = 40, 30, WIDTH - 60, HEIGHT - 50
        if kind == "bar chart":
            chart.data, chart.bars[0].fillColor = [values], HexColor(colour)
        elif kind == "line chart":
            chart.data = [values]
            chart.lines[0].strokeColor, chart.lines[0].strokeWidth = HexColor(colour), 2
        else:
            chart.data = [[(rng.gauss(50, 20), rng.gauss(50, 20)) for _ in range(40)]]
            chart.lines[0].symbol.fillColor = chart.lines[0].symbol.strokeColor = HexColor(colour)
            chart.lines[0].strokeColor = None
            chart.xLabel = chart.yLabel = ""
    drawing.add(chart)
    return drawing


def sketch_of_reportlab(kind: str, colour: str, rng: random.Random) -> shapes.Drawing:
    """Draw what reportlab has no class for, of its shapes."""
    drawing, ink = shapes.Drawing(WIDTH, HEIGHT), HexColor(colour)
    if kind == "flow diagram":
        for number, word in enumerate(("order", "check", "ship")):
            x, y = 10 + number * 110, HEIGHT / 2 - 25
            drawing.add(shapes.Rect(x, y, 75, 50, fillColor=None, strokeColor=ink, strokeWidth=1.5))
            drawing.add(shapes.String(x + 37, y + 21, word, textAnchor="middle", fontSize=11))
            if number:
                drawing.add(shapes.Line(x - 35, y + 25, x, y + 25, strokeColor=ink, strokeWidth=1.5))
                drawing.add(shapes.Polygon([x, y + 25, x - 8, y + 29, x - 8, y + 21], fillColor=ink, strokeColor=ink))
    elif kind == "stamp":
        for radius in (85, 60):
            circle = shapes.Circle(WIDTH / 2, HEIGHT / 2, radius, fillColor=None, strokeColor=ink, strokeWidth=4)
            drawing.add(circle)
        word = shapes.String(WIDTH / 2, HEIGHT / 2 - 8, "RECEIVED", textAnchor="middle", fontSize=18, fillColor=ink)
        drawing.add(word)
    else:
        path = shapes.Path(fillColor=None, strokeColor=ink, strokeWidth=2)
        path.moveTo(20, HEIGHT / 2)
        for number in range(12):
            x, swing = 20 + number * 23, rng.uniform(20, 70) * (-1) ** number
            path.curveTo(x + 22, HEIGHT / 2 + swing, x + 2, HEIGHT / 2 + swing, x + 23, HEIGHT / 2)
        drawing.add(path)
    return drawing


def table_of_reportlab(colour: str, rng: random.Random) -> Table:
    """Make a table with a coloured head and grid."""
    cells = [["month", "ships", "tonnes", "share"]]
    cells += [[month, *(str(rng.randint(10, 999)) for _ in range(3))] for month in "Jan Feb Mar Apr May Jun".split()]
    table = Table(cells, colWidths=WIDTH / 4, rowHeights=HEIGHT / 7)
    ink = HexColor(colour)
    head = (0, 0), (-1, 0)
    table.setStyle([("BACKGROUND", *head, ink), ("TEXTCOLOR", *head, white), ("GRID", (0, 0), (-1, -1), 0.5, ink)])
    return table


def chart_of_matplotlib(kind: str, colour: str, rng: random.Random) -> io.BytesIO:
    """Draw a chart in matplotlib's usual style; a PNG."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(WIDTH / 72, HEIGHT / 72), constrained_layout=True)
    values = [rng.randint(10, 100) for _ in range(rng.randint(4, 8))]
    if kind == "bar chart":
        axis.bar(range(len(values)), values, color=colour)
    elif kind == "line chart":
        axis.plot(values, color=colour)
    elif kind == "scatter plot":
        axis.scatter([rng.gauss(0, 1) for _ in range(50)], [rng.gauss(0, 1) for _ in range(50)], color=colour)
    else:
        tints = [(*matplotlib.colors.to_rgb(colour), 1 - 0.2 * number) for number in range(4)]
        axis.pie(values[:4], colors=tints, wedgeprops={"edgecolor": "white"})
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)
    return file


Draw = Callable[[Canvas, float, float, str, str, random.Random], None]


def with_reportlab(canvas: Canvas, x: float, y: float, kind: str, colour: str, rng: random.Random) -> None:
    """Draw a figure with its left lower corner there."""
    if kind == "table":
        table = table_of_reportlab(colour, rng)
        table.wrapOn(canvas, WIDTH, HEIGHT)
        table.drawOn(canvas, x, y)
        return
    has_class = kind in CHARTS
    drawing = (chart_of_reportlab if has_class else sketch_of_reportlab)(kind, colour, rng)
    renderPDF.draw(drawing, canvas, x, y)


def with_matplotlib(canvas: Canvas, x: float, y: float, kind: str, colour: str, rng: random.Random) -> None:
    """Draw a figure with its left lower corner there."""
    canvas.drawImage(ImageReader(chart_of_matplotlib(kind, colour, rng)), x, y, WIDTH, HEIGHT)


CHARTS = ("bar chart", "pie chart", "line chart", "scatter plot")
LIBRARIES: dict[str, tuple[Draw, tuple[str, ...]]] = {
    "reportlab": (with_reportlab, (*CHARTS, "table", "flow diagram", "stamp", "signature")),
    "matplotlib": (with_matplotlib, CHARTS),
}


def write_pdf(path: Path, draw: Draw, kinds: Sequence[str], rng: random.Random) -> list[tuple[str, str, float, float]]:
    """Write a page a figure; return colours, kinds, and where the figure's middle is, in points from the top left."""
    canvas = Canvas(str(path), A4, invariant=True)
    width, height = A4
    pages = []
    for kind in kinds:
        for colour, code in COLOURS.items():
            x, y = rng.uniform(50, width - 50 - WIDTH), rng.uniform(90, height - 90 - HEIGHT)
            canvas.setFont("Times-Roman", 10)
            for line in range(math.ceil((height - 100) / 14)):
                baseline = height - 50 - 14 * line
                if not y - 10 < baseline < y + HEIGHT + 4:
                    canvas.drawString(50, baseline, LINE[line % 7 :][:100])
            draw(canvas, x, y, kind, code, rng)
            canvas.showPage()
            pages.append((colour, kind, x + WIDTH / 2, height - y - HEIGHT / 2))
    canvas.save()
    return pages


def measure(folder: Path, checkpoint: Path, max_visual_tokens: int) -> dict[str, Any]:
    """Write the PDFs, index them, and ask for every figure among those of its library."""
    embedder = ColQwenEmbedder(checkpoint, device="cpu", max_visual_tokens=max_visual_tokens)
    figures: dict[str, Any] = {}
    for library, (draw, kinds) in LIBRARIES.items():
        pdf = folder / f"{library}.pdf"
        asked = write_pdf(pdf, draw, kinds, random.Random(0))
        documents = PDFPageReader(image_dir=folder / "pages").load_data(pdf)
        right: list[tuple[str, bool]] = []
        in_box = []
        with ColQwenIndex.from_documents(documents, embedder=embedder, uri=folder / f"{library}.db") as index:
            retriever = index.as_retriever(similarity_top_k=1)
            for colour, kind, _, _ in asked:
                query = f"the page with a{'n' * (colour == 'orange')} {colour} {kind}"
                hit = retriever.retrieve(query)[0]
                found = asked[int(hit.node.metadata["page_number"]) - 1]
                right.append((kind, found[:2] == (colour, kind)))
                if right[-1][1]:
                    regions = [region.scaled(*A4) for region in index.explain(query, hit).regions()[:1]]
                    in_box.append(
                        any(
                            abs((left + end) / 2 - found[2]) <= WIDTH / 2
                            and abs((top + bottom) / 2 - found[3]) <= HEIGHT / 2
                            for left, top, end, bottom in regions
                        )
                    )
        figures[library] = {
            "pages": len(asked),
            "hit@1": round(float(np.mean([each for _, each in right])), 3),
            "region in box": round(float(np.mean(in_box)), 3) if in_box else None,
            "by kind": {kind: round(float(np.mean([each for of, each in right if of == kind])), 2) for kind in kinds},
        }
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where PDFs and pages are kept; by default they are not")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--max-visual-tokens", type=int, default=768)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(folder, options.checkpoint, options.max_visual_tokens)
    shown = Shown("", "pages", "hit@1", "region in box", "hit@1 by kind")
    for library, row in figures.items():
        kinds = ", ".join(f"{kind} {share:.2f}" for kind, share in row["by kind"].items())
        shown.add_row(library, str(row["pages"]), f"{row['hit@1']}", f"{row['region in box']}", kinds)
    Console().print(shown)
    print(json.dumps(figures))  # noqa: T201 - the result
    return 0


if __name__ == "__main__":
    sys.exit(main())
