"""Nodes of any retriever, ranked by MaxSim."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import PrivateAttr

from llama_index_colqwen import (
    ColQwenIndex,
    FingerprintMismatchError,
    InvalidOptionError,
    LexicalEmbedder,
    MaxSimRerank,
    MilvusPageStore,
    MultiVector,
    NoPageImageError,
    Page,
    QueryError,
)
from llama_index_colqwen.late_interaction.maxsim import maxsim
from llama_index_colqwen.testing import FakeEmbedder
from tests.recording_llm import SeeingLLM
from tests.test_index import make_document

WORDS = ["tide gauge", "tide tables of the harbour", "pump and valve", "valve of the pump leaks", "salt"]
QUESTION = "valve of the pump"


class Embedder(FakeEmbedder):
    """Counts calls."""

    calls = 0

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        self.calls += 1
        return super().embed_pages(pages)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[ColQwenIndex]:
    documents = [make_document(tmp_path, number, text) for number, text in enumerate(WORDS, start=1)]
    with ColQwenIndex.from_documents(documents, Embedder(), uri=tmp_path / "p.db", show_progress=False) as made:
        made.embedder.calls = 0  # type: ignore[attr-defined]
        yield made


def hits_of(nodes: Sequence[Any]) -> list[NodeWithScore]:
    return [NodeWithScore(node=node, score=0.1 * place) for place, node in enumerate(nodes)]


def exact(embedder: FakeEmbedder, nodes: Sequence[Any], question: str = QUESTION) -> list[tuple[str, float]]:
    [query] = embedder.embed_queries([question])
    scored = [(node.node_id, maxsim(query, embedder._embed(node.text))) for node in nodes]
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))


def ranked(hits: Sequence[NodeWithScore]) -> list[tuple[str, float]]:
    return [(hit.node.node_id, hit.get_score()) for hit in hits]


def same(some: list[tuple[str, float]], others: list[tuple[str, float]], tolerance: float) -> bool:
    return [name for name, _ in some] == [name for name, _ in others] and np.allclose(
        [score for _, score in some], [score for _, score in others], atol=tolerance
    )


@pytest.mark.parametrize("stored", [True, False])
async def test_pages_are_ranked_by_exact_maxsim(index: ColQwenIndex, stored: bool) -> None:
    embedder, nodes = index.embedder, index.nodes()
    assert isinstance(embedder, Embedder)
    rerank = MaxSimRerank(embedder, top_n=3, store=index.store if stored else None)
    given = hits_of(nodes)
    first = rerank.postprocess_nodes(given, query_str=QUESTION)
    assert embedder.calls == (0 if stored else 1), "stored vectors are read; others are embedded in one batch"
    assert same(ranked(first), exact(embedder, nodes)[:3], 0.02 if stored else 1e-5)
    assert ranked(await rerank.apostprocess_nodes(given, query_bundle=QueryBundle(QUESTION))) == ranked(first)
    assert [hit.score for hit in given] == [0.1 * place for place in range(5)], "what was given is not changed"


def test_texts_of_other_retrievers_are_known_by_their_ids(index: ColQwenIndex) -> None:
    nodes = index.nodes()
    texts = [TextNode(id_=node.node_id, text="of another kind") for node in nodes]
    best = MaxSimRerank(index.embedder, top_n=1, store=index.store).postprocess_nodes(
        hits_of(texts), query_str=QUESTION
    )
    assert best[0].node is texts[3] or best[0].node == texts[3]
    assert index.embedder.calls == 0  # type: ignore[attr-defined]


def test_stored_and_other_pages_are_ranked_together(index: ColQwenIndex, tmp_path: Path) -> None:
    other = make_document(tmp_path, 9, "valve of the pump", document_id="other")
    best = MaxSimRerank(index.embedder, top_n=2, store=index.store).postprocess_nodes(
        hits_of([*index.nodes(), other]), query_str=QUESTION
    )
    assert {hit.node.node_id for hit in best} == {"d-p00004", other.node_id}


def test_words_only_embedders_rank_any_text(tmp_path: Path) -> None:
    texts = [TextNode(id_=f"t{place}", text=text) for place, text in enumerate(WORDS)]
    best = MaxSimRerank("lexical", top_n=1).postprocess_nodes(hits_of(texts), query_str="Which valve leaks?")
    assert best[0].node.node_id == "t3"


def test_visual_embedders_need_an_image_or_the_store(index: ColQwenIndex) -> None:
    class Seeing(Embedder):
        sees_images = True

    with pytest.raises(NoPageImageError, match=r"notes\.txt \(t1\) has no page image.*store=index\.store"):
        MaxSimRerank(Seeing()).postprocess_nodes(
            hits_of([TextNode(id_="t1", text="x", metadata={"file_name": "notes.txt"})]), query_str=QUESTION
        )


def test_the_score_before_is_kept_when_asked(index: ColQwenIndex) -> None:
    given = hits_of(index.nodes())
    rerank = MaxSimRerank(index.embedder, top_n=1, store=index.store, keep_retrieval_score=True)
    [best] = rerank.postprocess_nodes(given, query_str=QUESTION)
    assert best.node.metadata["retrieval_score"] == pytest.approx(0.3)
    assert "retrieval_score" not in given[3].node.metadata


@pytest.mark.parametrize("top_n", [0, -1, True, "5", 2.0])
def test_counts_that_are_none_are_refused(top_n: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidOptionError, match="top_n"):
        MaxSimRerank("lexical", top_n)


def test_bad_queries_and_nothing_to_rank(index: ColQwenIndex) -> None:
    rerank = MaxSimRerank(index.embedder, store=index.store)
    assert rerank.postprocess_nodes([], query_str=QUESTION) == []
    with pytest.raises(QueryError, match="none was given"):
        rerank.postprocess_nodes(hits_of(index.nodes()))
    with pytest.raises(QueryError, match="empty"):
        rerank.postprocess_nodes(hits_of(index.nodes()), query_str=" ")


def test_another_embedder_s_store_is_refused(index: ColQwenIndex) -> None:
    with pytest.raises(FingerprintMismatchError):
        MaxSimRerank(LexicalEmbedder(), store=MilvusPageStore(index.store.uri))


class Heard(BaseEventHandler):
    _events: list[BaseEvent] = PrivateAttr(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:  # noqa: ANN401
        if isinstance(event, (ReRankStartEvent, ReRankEndEvent)):
            self._events.append(event)


def test_it_is_heard_of_as_of_llamaindex_s_rerankers(index: ColQwenIndex) -> None:
    heard, debug = Heard(), LlamaDebugHandler(print_trace_on_end=False)
    rerank = MaxSimRerank(index.embedder, top_n=2, store=index.store)
    rerank.callback_manager = CallbackManager([debug])
    get_dispatcher().add_event_handler(heard)
    try:
        best = rerank.postprocess_nodes(hits_of(index.nodes()), query_str=QUESTION)
    finally:
        get_dispatcher().event_handlers.remove(heard)
    start, end = heard._events
    assert isinstance(start, ReRankStartEvent) and isinstance(end, ReRankEndEvent)
    assert (len(start.nodes), start.top_n, start.model_name) == (5, 2, "fake")
    assert [hit.node.node_id for hit in end.nodes] == [hit.node.node_id for hit in best]
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 1


async def test_the_event_loop_is_free_meanwhile(index: ColQwenIndex) -> None:
    class Slow(Embedder):
        def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
            time.sleep(0.3)
            return super().embed_queries(queries)

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await MaxSimRerank(Slow(), store=index.store).apostprocess_nodes(hits_of(index.nodes()), query_str=QUESTION)
    ticking.cancel()
    assert ticks >= 10


def test_in_a_query_engine_of_another_retriever(index: ColQwenIndex) -> None:
    bm25 = pytest.importorskip("llama_index.retrievers.bm25", reason="it refuses the newest PyStemmer")
    from llama_index.core.query_engine import RetrieverQueryEngine

    llm = SeeingLLM()
    engine = RetrieverQueryEngine.from_args(
        bm25.BM25Retriever.from_defaults(index=index, similarity_top_k=5),
        llm=llm,
        node_postprocessors=[MaxSimRerank(index.embedder, top_n=2, store=index.store)],
        multimodal=True,
    )
    response = engine.query(QUESTION)
    assert isinstance(index.embedder, Embedder)
    expected = [name for name, _ in exact(index.embedder, index.nodes())[:2]]
    assert [hit.node.node_id for hit in response.source_nodes] == expected
    assert len(llm.images()) == 2
