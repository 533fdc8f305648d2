"""A checkpoint and drawn pages -> how often the right page comes first, and whether the best patch lies in the figure.

Through `ColQwenEmbedder` and exact MaxSim, as pages are searched.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from draw import FIGURES, DrawnPage, Figure, draw_page, question
from PIL import Image

from llama_index_colqwen import ColQwenEmbedder, MultiVector, Page, PageVectors
from llama_index_colqwen.late_interaction.maxsim import maxsim_scores

__all__ = ["Found", "ask", "embed", "unseen_pages"]

_SIZES = ((392, 504), (392, 504), (504, 392), (420, 420), (365, 517), (448, 336))


@dataclass(frozen=True)
class Found:
    """What a question found.

    Attributes:
        figure: What was asked for.
        page: The first page, as an index.
        right: Whether that page has such a figure.
        in_box: Whether the page's best patch lies in such a figure.
    """

    figure: Figure
    page: int
    right: bool
    in_box: bool


def unseen_pages(count: int, seed: int = 1) -> list[DrawnPage]:
    """Draw pages that training never draws: upright, wide and of odd sizes, each with one to three figures."""
    rng = random.Random(f"unseen {seed}")
    return [draw_page(rng, rng.sample(FIGURES, rng.choice((1, 1, 2, 2, 3))), rng.choice(_SIZES)) for _ in range(count)]


def embed(embedder: ColQwenEmbedder, images: Sequence[Image.Image]) -> list[MultiVector]:
    """Embed page images."""
    pages = []
    for number, image in enumerate(images, start=1):
        file = io.BytesIO()
        image.save(file, "PNG")
        pages.append(Page(f"page {number}", "pages", "pages", number, "", image=file.getvalue()))
    return embedder.embed_pages(pages)


def ask(embedder: ColQwenEmbedder, pages: Sequence[DrawnPage], seed: int = 1) -> list[Found]:
    """Ask for one figure of each page that has any, among all the pages."""
    rng = random.Random(f"questions {seed}")
    figures = [rng.choice(page.figures).figure for page in pages if page.figures]
    vectors = embed(embedder, [page.image for page in pages])
    found = []
    for figure, query in zip(figures, embedder.embed_queries([question(each) for each in figures]), strict=True):
        first = int(np.argmax(maxsim_scores(query, vectors)))
        x, y = best_place(query, vectors[first])
        width, height = pages[first].image.size
        boxes = [drawn.box for drawn in pages[first].figures if drawn.figure == figure]
        in_box = any(box[0] <= x * width <= box[2] and box[1] <= y * height <= box[3] for box in boxes)
        found.append(Found(figure, first, bool(boxes), in_box))
    return found


def best_place(query: MultiVector, page: MultiVector) -> tuple[float, float]:
    """Return the middle of the patch that is most like the query's tokens in sum, as fractions of the page."""
    grid = page.patch_grid if isinstance(page, PageVectors) else None
    if grid is None:
        raise ValueError("the page has no patch grid")
    patches = np.asarray(page)[grid.start : grid.start + grid.rows * grid.columns]
    row, column = divmod(int(np.argmax((query @ patches.T).sum(axis=0))), grid.columns)
    return (column + 0.5) / grid.columns, (row + 0.5) / grid.rows
