"""Explanations of real visual models, tiny ones with random weights: what lies where."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.schema import ImageDocument
from PIL import Image

from llama_index_colqwen import ColQwenEmbedder, ColQwenIndex, EmbedderFingerprint, Explanation, MultiVector, Page
from llama_index_colqwen.explain.similarities import Box
from tests.extras import needs_colqwen

pytestmark = needs_colqwen


QUERY = "Which page has the revenue, naïve?"

# Letter upright and across, a strip, a narrow one, a poster, a stamp, and 3,000 pixels a side; odd numbers all.
SIZES = [(1275, 1651), (1649, 1277), (1601, 301), (233, 1501), (2999, 2003), (151, 149), (3000, 3001)]


class Planted:
    """Pages are embedded by the model; what is asked is one of the page's own vectors."""

    def __init__(self, embedder: ColQwenEmbedder) -> None:
        self.embedder, self.query = embedder, np.zeros((1, embedder.dim), np.float32)

    @property
    def dim(self) -> int:
        return self.embedder.dim

    @property
    def fingerprint(self) -> EmbedderFingerprint:
        return self.embedder.fingerprint

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        return self.embedder.embed_pages(pages)

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        return [self.query for _ in queries]


def document(image: Image.Image, node_id: str) -> ImageDocument:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return ImageDocument(
        id_=node_id,
        text="",
        image=base64.b64encode(buffer.getvalue()),
        image_mimetype="image/jpeg",
        metadata={"file_name": "drawn.pdf", "page_number": 1},
    )


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    """Draw what tiny models see, which is contrast: blank patches look at whatever is not blank."""
    values = np.random.default_rng(seed).integers(0, 256, (-(-size[1] // 4), -(-size[0] // 4)), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.NEAREST)


def changed_at(size: tuple[int, int], block: Box) -> Image.Image:
    """Draw noise, and other noise in a block."""
    image = noise(size, 1)
    left, top, right, bottom = (round(side * most) for side, most in zip(block, size * 2, strict=True))
    image.paste(noise((right - left, bottom - top), 9), (left, top))
    return image


BLOCKS: list[Box] = [(0.0, 0.05, 0.2, 0.25), (0.7, 0.2, 0.95, 0.4), (0.2, 0.75, 0.45, 1.0)]


def explained(index: ColQwenIndex, planted: Planted, size: tuple[int, int]) -> list[tuple[Explanation, Box]]:
    """Index changed pages, and ask each for the vector that changed most."""
    _page(index, document(noise(size, 1), f"unchanged {size}"))
    [before] = index.store.vectors([f"unchanged {size}"])
    found = []
    for block in BLOCKS:
        name = f"{size} {block}"
        _page(index, document(changed_at(size, block), name))
        [stored] = index.store.vectors([name])
        grid = stored.patch_grid
        assert grid is not None
        patches = slice(grid.start, grid.start + grid.rows * grid.columns)
        change = np.linalg.norm(stored.vectors[patches] - before.vectors[patches], axis=1)
        planted.query = stored.vectors[patches][[change.argmax()]]
        [node] = [node for node in index.nodes() if node.node_id == name]
        found.append((index.explain(f"the block of {name}", node), block))
    return found


def _page(index: ColQwenIndex, made: ImageDocument) -> Page:
    index.insert_nodes([made], show_progress=False)
    [page] = index.store.get([made.node_id])
    return page


@pytest.mark.parametrize("architecture", ["ColQwen2", "ColPali", "ColIdefics3"])
def test_the_patch_that_wins_is_where_the_page_changed(
    checkpoint: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    planted = Planted(ColQwenEmbedder(checkpoint(architecture)))
    with ColQwenIndex.from_documents([], planted, uri=tmp_path / "x.db", show_progress=False) as index:
        for size in SIZES if architecture == "ColQwen2" else SIZES[:2]:
            for found, block in explained(index, planted, size):
                assert (found.kind, found.grid is None) == ("patches", False)
                [match] = found.tokens
                [place] = match.places
                patch: Box = tuple(found.boxes[place].tolist())
                assert overlap(patch, block), (size, block, patch)
                [region, *_] = found.regions()
                assert overlap((region.left, region.top, region.right, region.bottom), block)
                # The line round it is drawn there, with the image's own shape.
                picture = found.to_image()
                assert picture.width / picture.height == pytest.approx(size[0] / size[1], rel=0.01)
                rows, columns = np.nonzero((np.asarray(picture) == [68, 1, 84]).all(axis=2))
                drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                scaled = [side * most for side, most in zip(patch, picture.size * 2, strict=True)]
                assert drawn == pytest.approx(scaled, abs=7)


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_tokens_are_the_tokenizers_pieces_and_what_the_model_adds_is_no_word(checkpoint: Callable[..., Path]) -> None:
    embedder = ColQwenEmbedder(checkpoint("ColQwen2"))
    pieces = embedder.query_tokens(QUERY)
    assert len(pieces) == len(embedder.embed_queries([QUERY])[0])
    assert pieces[-10:] == [""] * 10  # the suffix
    assert "".join(pieces[:-10]).replace("\ufffd", "") == "Whichpagehastherevenue,nave?"  # the prefix is left out
    assert "page" in pieces
    with pytest.raises(ValueError, match="empty"):
        embedder.query_tokens("  ")


@pytest.mark.parametrize("architecture", ["ColPali", "ColIdefics3", "ColModernVBert", "ColQwen2_5", "ColQwen3"])
def test_every_family_names_all_rows_of_a_query(checkpoint: Callable[..., Path], architecture: str) -> None:
    embedder = ColQwenEmbedder(checkpoint(architecture))
    for query in (QUERY, "x", "<|endoftext|> <pad>", "日本"):
        pieces = embedder.query_tokens(query)
        assert len(pieces) == len(embedder.embed_queries([query])[0])
    assert "".join(embedder.query_tokens("revenue")) == "revenue"


def test_a_page_is_explained_by_a_visual_model_and_its_score_adds_up(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    embedder = ColQwenEmbedder(checkpoint("ColQwen2"))
    pages = [document(changed_at(size, BLOCKS[0]), str(size)) for size in SIZES[:2]]
    with ColQwenIndex.from_documents(pages, embedder, uri=tmp_path / "x.db", show_progress=False) as index:
        for hit in index.as_retriever().retrieve(QUERY):
            found = index.explain(QUERY, hit)
            assert sum(match.share for match in found.tokens) == found.score == pytest.approx(hit.score, abs=1e-3)
            assert found.notes == []
            assert sum(match.is_word for match in found.tokens) < len(found.tokens) - 10
            assert len(found.tokens[0].similarities) == len(found.boxes) >= 700
            assert found.page_size is None  # of no PDF that is known
            assert "<script" not in found.to_html()
            # one token
            assert index.explain("x", hit).tokens[-11].text == "x"


def test_pooled_pages_say_so(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    embedder = ColQwenEmbedder(checkpoint("ColQwen2"), pool_factor=3)
    page = document(noise((400, 300), 1), "page")
    with ColQwenIndex.from_documents([page], embedder, uri=tmp_path / "x.db", show_progress=False) as index:
        found = index.explain(QUERY, index.nodes()[0])
    assert (found.kind, found.grid, found.regions()) == ("nothing", None, [])
    assert "vectors are pooled, so that it is not known where" in found.notes[0]
    assert found.score > 0


def test_a_large_page_takes_little_time(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    embedder = ColQwenEmbedder(checkpoint("ColQwen2"))
    page = document(noise((3000, 3001), 1), "page")
    with ColQwenIndex.from_documents([page], embedder, uri=tmp_path / "x.db", show_progress=False) as index:
        found = index.explain(QUERY, index.nodes()[0])
    assert found.image_size == (3000, 3001)
    started = time.thread_time()
    assert np.prod(found.to_image().size) <= 2_103_750
    assert time.thread_time() - started < 2
