"""A page's image and what matches on it -> a picture to look at: a heatmap, or boxes round words.

Pillow and numpy alone. Colours are viridis (van der Walt and Smith, 2015), which people with any colour vision see in
the same order. On light ground they are multiplied, so that dark print stays dark; on dark ground they are added, so
that light print stays light: both stay legible.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw

from llama_index_colqwen.explain.similarities import Box, Floats

__all__ = ["draw_boxes", "draw_heat", "heat_overlay", "word_colour"]

_Colour: TypeAlias = tuple[int, int, int]

# Viridis at 0, 1/8, ... 1; between them it is nearly straight.
_VIRIDIS = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99),
    (170, 220, 50), (253, 231, 37),
)  # fmt: skip
_NOT_SHOWN = 0.2  # what is hardly warmer than the rest of the page is left as it is
_DARK, _LIGHT = 100, 130  # grey below is dark ground, above is light; in between, both are mixed
_ON_DARK = 0.6  # of what a light ground is covered: yellow is nearly as light as light print


@lru_cache(maxsize=1)
def _palette() -> npt.NDArray[np.uint8]:
    anchors = np.array(_VIRIDIS, dtype=np.float64)
    steps = np.linspace(0, 1, len(anchors))
    columns = [np.interp(np.linspace(0, 1, 256), steps, anchors[:, channel]) for channel in range(3)]
    palette: npt.NDArray[np.uint8] = np.stack(columns, axis=1).round().astype(np.uint8)
    return palette


def word_colour(value: float) -> _Colour:
    """Return the colour of a word that matches so much, from 0 to 1: of viridis's lighter part, to read the print."""
    red, green, blue = _palette()[round(255 * (0.6 + 0.4 * min(max(value, 0.0), 1.0)))].tolist()
    return red, green, blue


def _opacity(alpha: float) -> npt.NDArray[np.uint8]:
    """Return, for warmth in 256 steps, how much its colour covers the page."""
    warmth = np.linspace(0, 1, 256)
    shown = ((warmth - _NOT_SHOWN) / (0.5 - _NOT_SHOWN)).clip(0, 1)
    opacity: npt.NDArray[np.uint8] = (255 * alpha * shown).round().astype(np.uint8)
    return opacity


def draw_heat(image: Image.Image, heat: Floats, winners: Iterable[Box], alpha: float) -> Image.Image:
    """Draw a heatmap over a page, and a line round the patches that won.

    Args:
        image: RGB.
        heat: From 0 to 1, shape (rows, columns), of equal parts of the page.
        winners: As fractions of the page.
        alpha: How much the warmest places are covered, from 0 to 1.
    """
    # Coloured small, and then scaled up: a tenth of the work.
    steps = _steps(heat)
    small = Image.fromarray(steps).resize((8 * steps.shape[1], 8 * steps.shape[0]), Image.Resampling.BILINEAR)
    warmth = np.asarray(small)
    colours = _palette()[warmth].astype(np.float32) / 255
    cover = _opacity(alpha)[warmth][:, :, None] / np.float32(255)
    ground = _light_ground(image).resize(small.size, Image.Resampling.BILINEAR)
    light = np.asarray(ground)[:, :, None] / np.float32(255)
    # Multiplying by a colour where the ground is light and screening with it where it is dark are both linear in the
    # page, and so is what lies between them: one factor and one summand.
    added = (1 - light) * (_ON_DARK * cover) * colours
    factor = light * (1 - (1 - colours) * cover) + (1 - light) - added
    drawn = ImageChops.multiply(image, _scaled_up(factor, image.size))
    if added.any():
        drawn = ImageChops.add(drawn, _scaled_up(added, image.size))
    for box in winners:
        _outline(drawn, box)
    return drawn


def _steps(heat: Floats) -> npt.NDArray[np.uint8]:
    steps: npt.NDArray[np.uint8] = (heat * 255).clip(0, 255).round().astype(np.uint8)
    return steps


def _scaled_up(colours: npt.NDArray[np.floating], size: tuple[int, int]) -> Image.Image:
    return Image.fromarray((colours * 255).round().astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def draw_boxes(image: Image.Image, boxes: Iterable[tuple[Box, float]], alpha: float) -> Image.Image:
    """Mark words on a page.

    Args:
        image: RGB.
        boxes: Where they stand, as fractions of the page, and how much they match, from 0 to 1.
        alpha: How much they are coloured, from 0 to 1.
    """
    marked = image.copy()
    for box, value in boxes:
        corners = _pixels(box, image.size, margin=1)
        word = image.crop(corners)
        tinted = ImageChops.multiply(word, Image.new("RGB", word.size, word_colour(value)))
        marked.paste(Image.blend(word, tinted, alpha), corners)
        _outline(marked, box)
    return marked


def heat_overlay(heat: Floats, alpha: float) -> Image.Image:
    """Return a heatmap to be laid over a page by a browser: RGBA, a pixel a patch."""
    steps = _steps(heat)
    return Image.fromarray(np.dstack([_palette()[steps], _opacity(alpha)[steps]]))


def _light_ground(image: Image.Image) -> Image.Image:
    """Return a small mask of where the page is light, by the mean grey of its parts: 255 where it is, 0 if dark."""
    width, height = max(image.width // 24, 1), max(image.height // 24, 1)
    grey = image.resize((width, height), Image.Resampling.BOX, reducing_gap=1.0).convert("L")
    ramp = [round(255 * min(max((value - _DARK) / (_LIGHT - _DARK), 0), 1)) for value in range(256)]
    return grey.point(ramp)


def _outline(image: Image.Image, box: Box) -> None:
    """Draw a dark line with a light one within: one of them is seen on any ground."""
    line = max(1, round(min(image.size) / 700))
    left, top, right, bottom = _pixels(box, image.size, margin=2 * line)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=_VIRIDIS[0], width=line)
    if right - left > 4 * line and bottom - top > 4 * line:
        inner = (left + line, top + line, right - 1 - line, bottom - 1 - line)
        draw.rectangle(inner, outline=_VIRIDIS[-1], width=line)


def _pixels(box: Box, size: tuple[int, int], margin: int) -> tuple[int, int, int, int]:
    """Return a box in whole pixels, at least one a side, and so much larger on each side as the image has room for."""
    width, height = size
    left, top = round(box[0] * width) - margin, round(box[1] * height) - margin
    right, bottom = max(round(box[2] * width) + margin, left + 1), max(round(box[3] * height) + margin, top + 1)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, max(min(right, width), left + 1), max(min(bottom, height), top + 1)
