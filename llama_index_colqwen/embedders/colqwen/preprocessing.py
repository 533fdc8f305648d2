"""A page image -> a model's inputs, and where its patches are; inputs of pages -> a batch.

Knows nothing of how models are loaded or run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from llama_index_colqwen.embedders.colqwen.families import Family
from llama_index_colqwen.errors import InvalidOptionError, UnreadableDocumentError
from llama_index_colqwen.images import to_rgb
from llama_index_colqwen.late_interaction.multivectors import PatchGrid
from llama_index_colqwen.pages import Page

__all__ = [
    "DEFAULT_VISUAL_TOKENS",
    "PreparedPage",
    "cap_visual_tokens",
    "collate",
    "image_area",
    "page_image",
    "prepare_page",
]

# ColQwen2's processor refuses images that are longer than this many times their width.
_MAX_ASPECT = 200
_MIN_VISUAL_TOKENS = 4
# What Pillow raises over broken images.
_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
DEFAULT_VISUAL_TOKENS = 768


@dataclass(frozen=True)
class PreparedPage:
    """A page as the model takes it.

    Attributes:
        inputs: The processor's tensors, for a batch of one.
        patch_grid: Which vectors are patches, once they are in `order`.
        order: The order to put the vectors into; None leaves them as they are.
    """

    inputs: dict[str, Any]
    patch_grid: PatchGrid
    order: npt.NDArray[np.int64] | None

    @property
    def num_tokens(self) -> int:
        """Tokens of the page, those of the prompt included."""
        return int(self.inputs["input_ids"].shape[1])


def cap_visual_tokens(processor: Any, family: Family, tokens: int, name: str) -> int | None:  # noqa: ANN401
    """Make a processor scale images down to at most so many visual tokens, their aspect ratio kept.

    Returns:
        The cap; None for models that have their own number of tokens.

    Raises:
        InvalidOptionError: If the cap is too low, or the model takes none and one was asked for.
    """
    if tokens < _MIN_VISUAL_TOKENS:
        raise InvalidOptionError(f"max_visual_tokens is {_MIN_VISUAL_TOKENS} or more; got {tokens}.")
    if family.layout != "dynamic":
        if tokens != DEFAULT_VISUAL_TOKENS:
            raise InvalidOptionError(
                f"max_visual_tokens={tokens} was asked for, but {name} ({family.model}) scales pages to its own number "
                "of tokens; leave it out."
            )
        return None
    images = processor.image_processor
    token_area = _token_area(processor)
    least, most = images.size["shortest_edge"], tokens * token_area
    # Small pages are scaled up to the least size, rounding up, which a low cap has no room for.
    images.size = {"shortest_edge": least if 4 * least <= most else token_area, "longest_edge": most}
    return tokens


def _token_area(processor: Any) -> int:  # noqa: ANN401
    """Return the pixels of a visual token."""
    return int((processor.image_processor.patch_size * processor.image_processor.merge_size) ** 2)


def page_image(page: Page, max_aspect: int = _MAX_ASPECT) -> Image.Image:
    """Decode a page's image: RGB, upright, on white, and at most so many times as long as wide.

    Raises:
        UnreadableDocumentError: If the image is gone or cannot be decoded.
    """
    try:
        with page.open_image() as opened:
            return _padded(to_rgb(opened), max_aspect)
    except _BROKEN as error:
        raise UnreadableDocumentError(
            f"{page.file_name}: the image of page {page.page_number} cannot be read ({error})."
        ) from error


def prepare_page(page: Page, processor: Any, family: Family) -> PreparedPage:  # noqa: ANN401
    """Decode a page's image and preprocess it.

    Raises:
        UnreadableDocumentError: If the image is gone or cannot be decoded.
    """
    # One line of tokens is the least: a page that is longer than the cap would exceed it.
    cap = (
        processor.image_processor.size["longest_edge"] // _token_area(processor) if family.layout == "dynamic" else None
    )
    image = page_image(page, _MAX_ASPECT if cap is None else min(_MAX_ASPECT, cap))
    # What the processor's own `process_images` calls, without the padded copy of the pixels that it makes.
    prompt = {"text": [processor.visual_prompt_prefix], "images": [image], "padding": "longest"}
    if family.layout == "square":
        import torch

        # As arrays: the processor hands tensors to numpy in a way that numpy warns of.
        inputs = {name: torch.from_numpy(array) for name, array in processor(**prompt, return_tensors="np").items()}
        inputs.pop("labels", None)  # for training: with them a loss would be computed
    else:
        inputs = dict(processor(**prompt, return_tensors="pt"))
    return PreparedPage(inputs, *_find_patches(inputs, processor, family))


def collate(pages: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """Make a batch of pages' inputs: tokens padded on the left, as the models were trained."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    if len(pages) == 1 and "image_grid_thw" not in pages[0]:
        return dict(pages[0])
    batch: dict[str, Any] = {}
    for name in pages[0]:
        tensors = [page[name] for page in pages]
        if name == "pixel_values" and "image_grid_thw" in pages[0]:
            # Pages of different sizes; the models of this kind iterate over them.
            batch[name] = tensors
        elif tensors[0].ndim == 2 and tensors[0].shape == pages[0]["input_ids"].shape:
            padding = pad_token_id if name == "input_ids" else 0
            rows = [tensor[0] for tensor in tensors]
            batch[name] = pad_sequence(rows, batch_first=True, padding_value=padding, padding_side="left")
        else:
            # Pages cut into fewer tiles than others are filled up with empty ones, which the models leave out.
            most = max(tensor.shape[1] for tensor in tensors)
            batch[name] = torch.cat([_filled_up(tensor, most) for tensor in tensors])
    return batch


def _filled_up(tensor: Any, length: int) -> Any:  # noqa: ANN401 - torch.Tensor
    from torch.nn.functional import pad

    missing = length - tensor.shape[1]
    return pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, missing)) if missing else tensor


def image_area(page: Page) -> int:
    """Return a page image's pixels, read from its head; 0 where that fails, which preprocessing reports."""
    try:
        with page.open_image() as image:
            return int(image.width * image.height)
    except _BROKEN:
        return 0


def _find_patches(
    inputs: Mapping[str, Any],
    processor: Any,  # noqa: ANN401
    family: Family,
) -> tuple[PatchGrid, npt.NDArray[np.int64] | None]:
    """Return the patch grid, and the order of vectors that it speaks of where that is not the model's."""
    ids = inputs["input_ids"][0].numpy()
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    patches = np.flatnonzero(ids == image_token)
    if family.layout == "dynamic":
        _, height, width = inputs["image_grid_thw"][0].tolist()
        merge = processor.image_processor.merge_size
        return PatchGrid(height // merge, width // merge, int(patches[0])), None
    if family.layout == "square":
        side = math.isqrt(len(patches))
        return PatchGrid(side, side, int(patches[0])), None
    # Tiles line by line, each followed by its patches line by line; the picture of the whole comes last.
    names = " ".join(processor.tokenizer.convert_ids_to_tokens(ids))
    tiles = [(int(row), int(column)) for row, column in re.findall(r"<row_(\d+)_col_(\d+)>", names)] or [(1, 1)]
    rows, columns = map(max, zip(*tiles, strict=True))
    side = math.isqrt(len(patches) // (len(tiles) + (tiles != [(1, 1)])))
    of_tiles = patches[: rows * columns * side * side].reshape(rows, columns, side, side)
    in_lines = of_tiles.transpose(0, 2, 1, 3).ravel()
    rest = np.setdiff1d(np.arange(len(ids)), in_lines)
    return PatchGrid(rows * side, columns * side), np.concatenate([in_lines, rest])


def _padded(image: Image.Image, max_aspect: int) -> Image.Image:
    """Widen what is longer than that, with white, on the right or below."""
    shortest = math.ceil(max(image.size) / max_aspect)
    if min(image.size) >= shortest:
        return image
    padded = Image.new("RGB", (max(image.width, shortest), max(image.height, shortest)), "white")
    padded.paste(image)
    return padded
