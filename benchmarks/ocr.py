"""Pages that are pictures only -> CPU seconds a page of OCR, and how many of the words it finds.

    python benchmarks/ocr.py [--pages 4] [--pdfs DIR] [--every 1]

Some pages are drawn here (columns, a table, large type) as a scanner delivers them, so that every word is known.
Of a folder of PDFs, pages with a text layer are drawn and read as if they had none: the layer is what is to be found.
Pages without one are timed only. Recall: words of a page that are found, each as often as it is there; precision: the
share of what is found that is there. Prints a line a kind of page and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pypdfium2
from PIL import Image
from reportlab.lib.pagesizes import LETTER
from reportlab.pdfgen.canvas import Canvas

from llama_index_colqwen.errors import DocumentError
from llama_index_colqwen.reading import ocr
from llama_index_colqwen.reading.rendering import render_document

DPI = 150
FEWEST_WORDS = 60  # of a text layer that is taken for all that its page says
WORDS = """basin harbour turbidity sensor drift salt spray annual report total amount invoice pressure valve station
maintenance interval measured between north quay height water level calibration series number table figure section
result percent of the in and to for with was is on at by from that this are were""".split()


@dataclass
class Score:
    """What was measured of one kind of page."""

    pages: int = 0
    cpu: float = 0.0
    wall: float = 0.0
    there: int = 0
    found: int = 0
    right: int = 0

    def add(self, image: Image.Image, truth: str | None) -> None:
        """Read a page."""
        cpu, wall = time.process_time(), time.perf_counter()
        _, text = ocr.read_words(image)
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall
        self.pages += 1
        if truth is not None:
            there, found = count_words(truth), count_words(text)
            self.there += there.total()
            self.found += found.total()
            self.right += (there & found).total()

    def figures(self) -> dict[str, float]:
        """Return seconds a page, recall and precision."""
        figures = {"pages": self.pages, "cpu_s": self.cpu / self.pages, "wall_s": self.wall / self.pages}
        if self.there:
            figures |= {"recall": self.right / self.there, "precision": self.right / max(1, self.found)}
        return {name: round(value, 4) for name, value in figures.items()}


def count_words(text: str) -> Counter[str]:
    """Count words without regard to case and punctuation."""
    return Counter(re.findall(r"\w+", text.lower()))


def drawn_pages(number: int) -> Iterator[tuple[Image.Image, str]]:
    """Draw letter pages, by turns two columns, a table, and large type; yield each as a scan, and its words."""
    chance = random.Random(0)
    for page in range(number):
        buffer = io.BytesIO()
        canvas = Canvas(buffer, pagesize=LETTER)
        size, columns, lines, words = [(9, 2, 56, 7), (8, 6, 50, 1), (14, 1, 36, 9)][page % 3]
        canvas.setFont("Times-Roman", size)
        said = []
        for column in range(columns):
            for line in range(lines):
                text = " ".join(
                    chance.choice(WORDS) if chance.random() < 0.85 else f"{chance.randrange(10**5):,}"
                    for _ in range(words)
                )
                canvas.drawString(50 + column * 520 / columns, 740 - line * size * 1.4, text)
                said.append(text)
        canvas.save()
        with closing(pypdfium2.PdfDocument(buffer.getvalue())) as pdf:
            image: Image.Image = pdf[0].render(scale=DPI / 72).to_pil().convert("RGB")
        yield image, " ".join(said)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=4, help="how many are drawn")
    parser.add_argument("--pdfs", type=Path, help="a folder, searched for *.pdf")
    parser.add_argument("--every", type=int, default=1, help="read only every so many of its pages, of either kind")
    arguments = parser.parse_args()

    scores = {kind: Score() for kind in ("drawn", "text layer hidden", "pictures")}
    ocr.read_words(Image.new("RGB", (640, 480), "white"))  # what a process does once is not a page's time
    for image, truth in drawn_pages(arguments.pages):
        scores["drawn"].add(image, truth)
    seen: Counter[str] = Counter()
    for path in sorted(arguments.pdfs.glob("*.pdf")) if arguments.pdfs else []:
        for page in render_document(path, path.name):
            if isinstance(page, DocumentError) or 0 < len(page.words) < FEWEST_WORDS:
                continue
            kind = "text layer hidden" if page.words else "pictures"
            if seen[kind] % arguments.every == 0:
                scores[kind].add(page.image, page.text or None)
            seen[kind] += 1
    figures = {kind: score.figures() for kind, score in scores.items() if score.pages}
    for kind, values in figures.items():
        sys.stdout.write(f"{kind}: {', '.join(f'{name} {value:g}' for name, value in values.items())}\n")
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
