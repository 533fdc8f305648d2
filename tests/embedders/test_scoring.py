"""MaxSim on a torch device: the scores of numpy's, whatever pages are kept as. The CPU stands for GPUs here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import ImageDocument, NodeWithScore
from PIL import Image

from llama_index_colqwen import ColQwenEmbedder, ColQwenIndex, DimensionMismatchError, MaxSimRerank, MultiVector
from llama_index_colqwen.embedders import scoring
from llama_index_colqwen.embedders.scoring import maxsim_on_device
from llama_index_colqwen.late_interaction.maxsim import maxsim_scores
from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, encode_vectors
from tests.extras import needs_colqwen, torch
from tests.fakes import unit_rows

pytestmark = needs_colqwen


LENGTHS = [1, 700, 13, 13, 2, 300]


def pages_of(kind: str) -> list[MultiVector | EncodedVectors]:
    pages = [unit_rows(seed, rows, 128) for seed, rows in enumerate(LENGTHS)]
    kinds = {"float32": [], "int8": ["int8"], "float16": ["float16"], "all kinds": ["int8", "float16", ""]}[kind]
    if not kinds:
        return list(pages)
    encode: dict[str, Callable[[MultiVector], MultiVector | EncodedVectors]] = {
        "int8": lambda page: encode_vectors(page, "int8"),
        "float16": lambda page: encode_vectors(page, "float16"),
        "": lambda page: page,
    }
    return [encode[kinds[number % len(kinds)]](page) for number, page in enumerate(pages)]


@pytest.mark.parametrize("block_rows", [1, 320, 1 << 18])
@pytest.mark.parametrize("kind", ["float32", "int8", "float16", "all kinds"])
def test_scores_are_those_of_numpy(kind: str, block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_BLOCK_ROWS", block_rows)
    query, pages = unit_rows(99, 25, 128), pages_of(kind)
    expected = maxsim_scores(query, pages)
    np.testing.assert_allclose(maxsim_on_device(query, pages, "cpu"), expected, rtol=0, atol=1e-5)
    assert maxsim_on_device(query, [], "cpu").shape == (0,)


def test_page_with_only_negative_similarities_keeps_its_score_beside_longer_ones() -> None:
    query = np.array([[1, 0]], np.float32)
    pages = [np.array([[-1, 0]], np.float32), np.array([[0, 1], [0.6, 0.8], [-1, 0]], np.float32)]
    np.testing.assert_allclose(maxsim_on_device(query, pages, "cpu"), [-1, 0.6], atol=1e-6)


def test_kernel_is_given_rows_and_where_pages_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = pytest.importorskip("late_interaction_kernels.reference")

    def maxsim_varlen(query: Any, rows: Any, of_query: Any, of_pages: Any, longest_query: int, longest: int) -> Any:  # noqa: ANN401
        assert (longest_query, longest) == (25, 700) and of_pages.dtype == of_query.dtype == torch.int32
        return reference.maxsim_reference_varlen(query, rows, of_query, of_pages)

    monkeypatch.setattr(scoring, "_kernel", lambda query: maxsim_varlen)
    query, pages = unit_rows(99, 25, 128), pages_of("int8")
    np.testing.assert_allclose(maxsim_on_device(query, pages, "cpu"), maxsim_scores(query, pages), rtol=0, atol=1e-5)


def test_query_and_page_of_other_dims_are_refused() -> None:
    with pytest.raises(DimensionMismatchError, match="the same dim"):
        maxsim_on_device(unit_rows(1, 2, 8), [unit_rows(2, 3, 16)], "cpu")


def test_retriever_and_reranker_score_on_the_device_of_an_embedder_that_is_asked_to(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(query: MultiVector, pages: Sequence[MultiVector | EncodedVectors], device: str) -> Any:  # noqa: ANN401
        asked.append(len(pages))
        return maxsim_on_device(query, pages, device)

    monkeypatch.setattr("llama_index_colqwen.embedders.colqwen.embedder.maxsim_on_device", counted)
    documents = []
    for name, colour in (("a", "white"), ("b", "black"), ("c", "red")):
        Image.new("RGB", (112, 140), colour).save(tmp_path / f"{name}.png")
        documents.append(ImageDocument(id_=name, text=name, image_path=str(tmp_path / f"{name}.png")))
    options: dict[str, Any] = {"device": "cpu", "max_visual_tokens": 16}
    numpys = ColQwenEmbedder(checkpoint(), **options)
    torchs = ColQwenEmbedder(checkpoint(), score_on_device=True, **options)
    assert torchs.fingerprint == numpys.fingerprint
    found: dict[str, Sequence[NodeWithScore]] = {}
    with ColQwenIndex.from_documents(documents, numpys, uri=tmp_path / "p.db", show_progress=False) as index:
        hits: list[NodeWithScore] = [*index.as_retriever().retrieve("red")]
        assert asked == []
    with ColQwenIndex.from_existing(tmp_path / "p.db", torchs) as index:
        found["retrieved"] = index.as_retriever().retrieve("red")
        assert asked == [3]
        found["reranked"] = MaxSimRerank(torchs, top_n=3, store=index.store).postprocess_nodes(hits, query_str="red")
        assert asked == [3, 3]
    for others in found.values():
        assert [hit.node.node_id for hit in others] == [hit.node.node_id for hit in hits]
        np.testing.assert_allclose([hit.get_score() for hit in others], [hit.get_score() for hit in hits], atol=1e-5)
