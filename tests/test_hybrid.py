"""Retrieving by words, and by words and MaxSim together."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import QueryBundle
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from llama_index_colqwen import ColQwenIndex, InvalidOptionError, LexicalEmbedder, MultiVector, QueryError
from llama_index_colqwen.retriever import Mode
from llama_index_colqwen.testing import FakeEmbedder
from tests.recording_llm import SeeingLLM
from tests.test_index import make_document

TEXTS = {1: "drift of sensors", 2: "salt spray", 3: "", 4: "sensors in salt spray"}
EAST, NORTH = np.eye(4, dtype=np.float32)[:2]


class Looking(FakeEmbedder):
    """A visual embedder: page 3 looks most like any question, and then pages 2, 1 and 4."""

    sees_images = True
    asked = 0

    def __init__(self) -> None:
        super().__init__({}, 4)

    def embed_pages(self, pages: Any) -> list[MultiVector]:  # noqa: ANN401
        looks = {3: 1.0, 2: 0.8, 1: 0.6, 4: 0.4}
        likeness = [looks.get(page.page_number, 0.9) for page in pages]
        return [np.array([x * EAST + (1 - x * x) ** 0.5 * NORTH]) for x in likeness]

    def embed_queries(self, queries: Any) -> list[MultiVector]:  # noqa: ANN401
        self.asked += 1
        return [EAST[None] for _ in queries]


def make_index(folder: Path, embedder: Any, texts: dict[int, str]) -> ColQwenIndex:  # noqa: ANN401
    documents = [make_document(folder, number, text, parity=number % 2) for number, text in texts.items()]
    return ColQwenIndex.from_documents(documents, embedder, uri=folder / "pages.db", show_progress=False)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[ColQwenIndex]:
    with make_index(tmp_path, Looking(), TEXTS) as made:
        yield made


def numbers(index: ColQwenIndex, question: str | QueryBundle, **options: Any) -> list[int]:  # noqa: ANN401
    hits = index.as_retriever(**{"similarity_top_k": 10, **options}).retrieve(question)
    return [hit.metadata["page_number"] for hit in hits]


def test_the_default_is_maxsim_alone(index: ColQwenIndex) -> None:
    assert index.as_retriever().mode == "visual"
    assert numbers(index, "sensors") == numbers(index, "sensors", mode="visual") == [3, 2, 1, 4]


def test_text_finds_pages_with_the_words_and_does_not_embed(index: ColQwenIndex) -> None:
    assert numbers(index, "Which sensor drifts?", mode="text") == [1, 4]
    assert isinstance(index.embedder, Looking) and index.embedder.asked == 0


def test_hybrid_joins_both_and_lists_each_page_once(index: ColQwenIndex) -> None:
    hits = index.as_retriever(mode="hybrid", similarity_top_k=10).retrieve("Which sensor drifts?")
    scores = {hit.metadata["page_number"]: hit.score for hit in hits}
    assert scores == pytest.approx({1: 1 / 63 + 1 / 61, 4: 1 / 64 + 1 / 62, 3: 1 / 61, 2: 1 / 62})
    assert list(scores) == [1, 4, 3, 2]
    assert numbers(index, "Which sensor drifts?", mode="hybrid", similarity_top_k=2) == [1, 4]


def test_a_weight_joins_scores(index: ColQwenIndex) -> None:
    assert numbers(index, "Which sensor drifts?", mode="hybrid", text_weight=0) == [3, 2, 1, 4]
    assert numbers(index, "Which sensor drifts?", mode="hybrid", text_weight=1)[:2] == [1, 4]
    assert numbers(index, "Which sensor drifts?", mode="hybrid", text_weight=0.7)[0] == 1


@pytest.mark.parametrize("options", [{"mode": "text"}, {"mode": "hybrid"}, {"mode": "hybrid", "text_weight": 0.4}])
def test_normalized_scores_lie_between_0_and_1(index: ColQwenIndex, options: dict[str, Any]) -> None:
    plain = index.as_retriever(**options).retrieve("sensors in salt")
    normal = index.as_retriever(score="normalized", **options).retrieve("sensors in salt")
    assert [hit.node_id for hit in plain] == [hit.node_id for hit in normal]
    assert all(0 <= (hit.score or 0) <= 1 for hit in normal)


def test_a_page_that_is_first_in_both_has_the_normalized_score_1(index: ColQwenIndex) -> None:
    [hit] = index.as_retriever(mode="hybrid", similarity_top_k=1, score="normalized").retrieve("spray")
    assert hit.metadata["page_number"] == 2 and (hit.score or 0) < 1
    only = MetadataFilters(filters=[MetadataFilter(key="page_number", value=2)])
    [hit] = index.as_retriever(mode="hybrid", filters=only, score="normalized").retrieve("spray")
    assert hit.score == pytest.approx(1)


@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_filters_hold_for_both(index: ColQwenIndex, mode: Mode) -> None:
    odd = MetadataFilters(filters=[MetadataFilter(key="parity", value=1)])
    assert numbers(index, "sensors spray", mode=mode, filters=odd) == ([1] if mode == "text" else [1, 3])


def test_pages_that_only_their_words_find_are_scored_by_maxsim_too(tmp_path: Path) -> None:
    texts = {number: f"page {number}" for number in range(1, 5)}
    with make_index(tmp_path, Looking(), texts) as index:
        retriever = index.as_retriever(mode="hybrid", similarity_top_k=1, candidate_k=1)
        by_maxsim = [hit.metadata["page_number"] for hit in index.as_retriever(similarity_top_k=4).retrieve("x")]
        found = retriever._with_vectors(iter(()), index.store.page_ids())
        assert sorted(candidate.page_id for candidate in found) == sorted(index.store.page_ids())
        first = next(iter(index.store.candidates(EAST[None])))
        pool = list(retriever._with_vectors([first], index.store.page_ids()))
        assert [candidate.page_id for candidate in pool].count(first.page_id) == 1 and len(pool) == len(by_maxsim)


def test_an_image_counts_for_maxsim_only(index: ColQwenIndex, tmp_path: Path) -> None:
    image = index.nodes()[2].image_path
    assert image is not None
    alike = QueryBundle("", image_path=image)
    assert numbers(index, alike, mode="hybrid") == numbers(index, alike) == [1, 4, 2, 3]
    with pytest.raises(QueryError, match='mode="text" looks for words, and the query has only an image'):
        numbers(index, alike, mode="text")


def test_words_that_no_page_has_leave_maxsim(index: ColQwenIndex) -> None:
    for question in ("zeppelin", "of the"):
        assert numbers(index, question, mode="text") == []
        assert numbers(index, question, mode="hybrid") == [3, 2, 1, 4]


def test_queries_without_words(index: ColQwenIndex) -> None:
    assert numbers(index, "?!", mode="hybrid") == [3, 2, 1, 4]
    with pytest.raises(QueryError, match="no letters or digits to look for: '\\?!'"):
        numbers(index, "?!", mode="text")
    for mode in ("text", "hybrid"):
        with pytest.raises(QueryError, match="ask for something in words"):
            numbers(index, "  ", mode=mode)


def test_a_collection_without_text(tmp_path: Path) -> None:
    with make_index(tmp_path, Looking(), {1: "", 3: ""}) as index:
        assert numbers(index, "sensors", mode="hybrid") == [3, 1]
        with pytest.raises(InvalidOptionError, match=r'mode="text" finds nothing .* none of its 2 pages has text'):
            numbers(index, "sensors", mode="text")
        index.delete_nodes(index.store.page_ids())
        assert numbers(index, "sensors", mode="text") == numbers(index, "sensors", mode="hybrid") == []


def test_all_strings_of_a_query_count_for_both(index: ColQwenIndex) -> None:
    bundle = QueryBundle("unseen", custom_embedding_strs=["drift", "drift of a sensor", "spray"])
    assert numbers(index, bundle, mode="text") == [1, 4, 2]
    assert set(numbers(index, bundle, mode="hybrid")) == {1, 2, 3, 4}
    assert numbers(index, bundle, mode="hybrid")[0] == 1


@pytest.mark.parametrize("mode", ["text", "hybrid"])
async def test_asynchronously_the_same(index: ColQwenIndex, mode: Mode) -> None:
    retriever = index.as_retriever(mode=mode, similarity_top_k=10)
    hits, awaited = retriever.retrieve("salt sensors"), await retriever.aretrieve("salt sensors")
    assert [(hit.node_id, hit.score) for hit in hits] == [(hit.node_id, hit.score) for hit in awaited]


def test_options_are_checked_and_can_be_set(index: ColQwenIndex) -> None:
    retriever = index.as_retriever()
    retriever.mode, retriever.text_weight = "hybrid", 0.25
    assert [hit.metadata["page_number"] for hit in retriever.retrieve("drift")][0] == 3
    with pytest.raises(InvalidOptionError, match="mode is one of visual, text, hybrid; got 'bm25'"):
        index.as_retriever(mode="bm25")  # type: ignore[arg-type]
    for wrong in (1.5, -0.1, True, "much", float("nan")):
        with pytest.raises(InvalidOptionError, match="text_weight is a number from 0 to 1"):
            index.as_retriever(text_weight=wrong)  # type: ignore[arg-type]


def test_a_pickled_retriever_keeps_its_mode(index: ColQwenIndex) -> None:
    again = pickle.loads(pickle.dumps(index.as_retriever(mode="text", text_weight=0.3)))
    assert (again.mode, again.text_weight) == ("text", 0.3)


def test_engines_take_the_mode(index: ColQwenIndex) -> None:
    options: dict[str, Any] = {"llm": SeeingLLM(), "mode": "text", "similarity_top_k": 2}
    response = index.as_query_engine(**options).query("Which sensor drifts?")
    assert [node.metadata["page_number"] for node in response.source_nodes] == [1, 4]
    for chat_mode in ("context", "condense_question"):
        answer = index.as_chat_engine(chat_mode, **options).chat("Which sensor drifts?")
        assert [node.metadata["page_number"] for node in answer.source_nodes] == [1, 4]


def test_the_lexical_embedders_language_counts_the_words(tmp_path: Path) -> None:
    with make_index(tmp_path, LexicalEmbedder("de"), {1: "Häuser am Hafen", 2: "Strand"}) as index:
        assert numbers(index, "Haus", mode="text") == numbers(index, "Haus", mode="hybrid")[:1] == [1]
