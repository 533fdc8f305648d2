"""What is asked of embedders, and what comes of rows that are not unit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.schema import ImageDocument
from PIL import Image

from llama_index_colqwen import ColQwenIndex, MilvusPageStore, MultiVector
from llama_index_colqwen.embedders.protocol import highest_score, normalized
from llama_index_colqwen.late_interaction.maxsim import maxsim
from llama_index_colqwen.late_interaction.multivectors import VectorDtype
from llama_index_colqwen.testing import FakeEmbedder
from tests.fakes import make_page, unit_rows

LENGTHS = np.array([[2.0], [0.5]], np.float32)


class Weighted(FakeEmbedder):
    """Has queries of two rows, of lengths 2 and .5."""

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        return [rows * LENGTHS[: len(rows)] for rows in super().embed_queries(queries)]


def test_most_that_a_page_can_score_is_the_sum_of_the_lengths_of_the_querys_rows() -> None:
    embedder = FakeEmbedder()
    query = np.array([[2, 0], [0, 0.5]], np.float32)
    assert highest_score(embedder, query) == 2.5
    assert highest_score(embedder, query / LENGTHS) == 2
    assert highest_score(embedder, np.zeros((3, 2), np.float32)) == 3, "nothing is divided by 0"
    # A page with both rows scores all of it; one with the second alone, .5 of 2.5.
    assert normalized(embedder, query, maxsim(query, np.eye(2, dtype=np.float32))) == 1
    assert normalized(embedder, query, maxsim(query, np.array([[0, 1]], np.float32))) == pytest.approx(0.2)
    assert normalized(embedder, query, maxsim(query, np.array([[-1, 0]], np.float32))) == pytest.approx(-0.8)


def test_longer_rows_of_a_query_count_more(tmp_path: Path) -> None:
    Image.new("RGB", (20, 30)).save(tmp_path / "page.png")
    texts = {"both": "red chart", "the first": "red map", "the second": "blue chart"}
    documents = [
        ImageDocument(id_=name, text=text, image_path=str(tmp_path / "page.png")) for name, text in texts.items()
    ]
    with ColQwenIndex.from_documents(documents, Weighted(), uri=tmp_path / "pages.db", show_progress=False) as index:
        hits = index.as_retriever(score="normalized").retrieve("red chart")
        sums = index.as_retriever(score="maxsim").retrieve("red chart")
    assert [hit.node.node_id for hit in hits] == ["both", "the first", "the second"]
    assert hits[0].score == pytest.approx(1, abs=0.01)
    assert all(0 < (hit.score or 0) < 0.95 for hit in hits[1:])
    assert [hit.score for hit in sums] == [pytest.approx(2.5 * (hit.score or 0), rel=1e-5) for hit in hits]


@pytest.mark.parametrize("vector_dtype", ["int8", "float16"])
def test_rows_of_pages_keep_their_lengths_in_the_store(tmp_path: Path, vector_dtype: VectorDtype) -> None:
    lengths = np.array([[0.01], [1], [30]], np.float32)
    vectors = unit_rows(1, 3) * lengths
    with MilvusPageStore(tmp_path / "pages.db", vector_dtype=vector_dtype) as store:
        store.open(FakeEmbedder(dim=4).fingerprint)
        store.add([make_page("page")], [vectors])
        [candidate] = store.vectors(["page"])
    np.testing.assert_allclose(candidate.vectors / lengths, vectors / lengths, atol=0.005)
    query = unit_rows(2, 5)
    assert maxsim(query, candidate.vectors) == pytest.approx(maxsim(query, vectors), rel=0.01)
