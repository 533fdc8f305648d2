"""Recent queries: asked again, they cost nothing, and are what the embedder makes of them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from llama_index.core.schema import ImageDocument
from PIL import Image

from llama_index_colqwen import ColQwenIndex, ModelError, MultiVector, QueryError
from llama_index_colqwen.embedders import recent
from llama_index_colqwen.embedders.recent import embed_queries
from llama_index_colqwen.testing import FakeEmbedder


class Counting(FakeEmbedder):
    """Knows what it was asked."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__(dim=dim)
        self.asked: list[list[str]] = []

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        self.asked.append(list(queries))
        return super().embed_queries(queries)


def test_only_what_is_new_is_embedded_once_and_in_one_call() -> None:
    embedder = Counting()
    first = embed_queries(embedder, ["red chart", "blue chart"])
    again = embed_queries(embedder, ["green map", "red chart", "green map", "blue chart"])
    assert embedder.asked == [["red chart", "blue chart"], ["green map"]]
    expected = FakeEmbedder().embed_queries(["green map", "red chart", "green map", "blue chart"])
    for rows, right in zip(again, expected, strict=True):
        np.testing.assert_array_equal(rows, right)
    assert again[1] is first[0]
    assert embed_queries(embedder, []) == []


def test_embedders_do_not_share_queries_and_are_not_kept_alive() -> None:
    one, other = Counting(dim=8), Counting(dim=16)
    assert [embed_queries(embedder, ["chart"])[0].shape[1] for embedder in (one, other)] == [8, 16]
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None


def test_nobody_changes_what_is_remembered() -> None:
    embedder = Counting()
    [rows] = embed_queries(embedder, ["chart"])
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 2


def test_memory_is_bounded_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Counting()
    size = embedder.embed_queries(["word"])[0].nbytes
    embedder.asked.clear()
    monkeypatch.setattr(recent, "_MAX_BYTES", 3 * size)
    for query in ("one", "two", "three", "one", "four", "one", "two"):
        embed_queries(embedder, [query])
    assert embedder.asked == [["one"], ["two"], ["three"], ["four"], ["two"]]


def test_errors_are_not_remembered() -> None:
    embedder = Counting()
    for _ in range(2):
        with pytest.raises(QueryError):
            embed_queries(embedder, [" "])
    assert len(embedder.asked) == 2


def test_embedder_that_gives_too_few_is_named() -> None:
    class Short(FakeEmbedder):
        def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
            return super().embed_queries(queries)[1:]

    with pytest.raises(ModelError, match="gave 1 multi-vectors for 2 queries"):
        embed_queries(Short(), ["a", "b"])


def test_embedder_that_cannot_be_remembered_is_asked_every_time() -> None:
    class Unhashable(Counting):
        __hash__ = None  # type: ignore[assignment]

    embedder = Unhashable()
    for _ in range(2):
        assert len(embed_queries(embedder, ["chart"])) == 1
    assert len(embedder.asked) == 2


def test_threads_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Counting()
    monkeypatch.setattr(recent, "_MAX_BYTES", 2000)
    words = [f"word{number}" for number in range(40)]
    expected = dict(zip(words, FakeEmbedder().embed_queries(words), strict=True))
    started = Barrier(4)

    def ask(seed: int) -> None:
        started.wait()
        for number in np.random.default_rng(seed).integers(0, 40, 300):
            np.testing.assert_array_equal(embed_queries(embedder, [words[number]])[0], expected[words[number]])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    assert recent._OF[embedder]._bytes == sum(rows.nbytes for rows in recent._OF[embedder]._vectors.values()) <= 2000


def test_hits_of_a_question_are_explained_without_embedding_it_again(tmp_path: Path) -> None:
    embedder = Counting()
    Image.new("RGB", (20, 30)).save(tmp_path / "page.png")
    document = ImageDocument(text="red chart", image_path=str(tmp_path / "page.png"))
    with ColQwenIndex.from_documents([document], embedder, uri=tmp_path / "p.db", show_progress=False) as index:
        [hit] = index.as_retriever().retrieve("red chart")
        index.explain("red chart", hit)
        index.as_retriever().retrieve("red chart")
    assert embedder.asked == [["red chart"]]
