from __future__ import annotations

import random
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llama_index_colqwen import ColQwenEmbedder, ColQwenIndex
from tests.extras import needs_colqwen
from tests.test_examples import threads_of_torch_kept
from tests.test_index import make_document

pytestmark = needs_colqwen

FOLDER = Path(__file__).parents[1] / "examples" / "tiny_visual"
SEED = 7  # of pages that neither training nor the measurements on the card have seen


@pytest.fixture(scope="module")
def example() -> Iterator[dict[str, ModuleType]]:
    """The example's modules, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {name: import_module(name) for name in ("draw", "measure", "train")}


@pytest.fixture(scope="module")
def embedder() -> ColQwenEmbedder:
    return ColQwenEmbedder(FOLDER / "checkpoint", device="cpu")


def test_figures_on_unseen_pages_are_found_and_the_best_patch_lies_in_them(
    example: dict[str, ModuleType], embedder: ColQwenEmbedder
) -> None:
    pages = example["measure"].unseen_pages(40, SEED)
    sizes = [page.image.size for page in pages]
    assert any(width > height for width, height in sizes)
    assert any(side % example["train"].PATCH for size in sizes for side in size)
    found = example["measure"].ask(embedder, pages, SEED)
    right = [each for each in found if each.right]
    assert len(found) == 40
    assert len(right) >= 35
    assert sum(each.in_box for each in right) >= 0.9 * len(right)


def test_explanations_point_at_the_figure(
    example: dict[str, ModuleType], embedder: ColQwenEmbedder, tmp_path: Path
) -> None:
    draw = example["draw"]
    rng = random.Random(SEED)
    figures = [("red", "pie chart"), ("blue", "bar chart"), ("green", "table"), ("orange", "map"), ("purple", "stamp")]
    pages = [draw.draw_page(rng, [figure], size) for figure in figures for size in ((392, 504), (504, 392))]
    documents = []
    for number, page in enumerate(pages, start=1):
        documents.append(make_document(tmp_path, number, ""))
        page.image.save(documents[-1].image_path)
    in_box = []
    with ColQwenIndex.from_documents(documents, embedder=embedder, uri=tmp_path / "pages.db") as index:
        for figure in figures:
            question = draw.question(figure)
            for hit in index.as_retriever(similarity_top_k=2).retrieve(question):
                page = pages[hit.node.metadata["page_number"] - 1]
                assert page.figures[0].figure == figure
                first = index.explain(question, hit).regions()[0]
                left, top, right, bottom = first.scaled(*page.image.size)
                box = page.figures[0].box
                x, y = (left + right) / 2, (top + bottom) / 2
                in_box.append(box[0] <= x <= box[2] and box[1] <= y <= box[3])
    assert len(in_box) == 10
    assert sum(in_box) >= 9


def test_training_is_the_same_for_the_same_seed(example: dict[str, ModuleType], tmp_path: Path) -> None:
    import torch

    train: Any = example["train"]
    stage = train.Stage(1.0, ((4, 5), (5, 4)), 3, (1, 2))
    with threads_of_torch_kept(), torch.random.fork_rng(devices=[]):
        for name, seed in (("one", 0), ("again", 0), ("other", 1)):
            torch.rand(len(name))
            train.train(tmp_path / name, steps=2, seed=seed, stages=[stage])
    one, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "again", "other"))
    assert one == again
    assert one != other
    assert ColQwenEmbedder(tmp_path / "one", device="cpu").dim == 128
