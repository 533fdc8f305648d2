from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # not in its __all__
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.llms.mock import MockLLM
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import ImageNode, MetadataMode, QueryBundle
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from PIL import Image
from pydantic import PrivateAttr

from llama_index_colqwen import (
    ColQwenIndex,
    ColQwenRetriever,
    DocumentNotFoundError,
    EmbedderFingerprint,
    FingerprintMismatchError,
    InvalidOptionError,
    MultiVector,
    Page,
    PDFPageReader,
    QueryError,
    word_boxes,
)
from llama_index_colqwen.late_interaction.maxsim import maxsim
from llama_index_colqwen.testing import FakeEmbedder
from tests.documents import write_text_pdf
from tests.fakes import unit_rows
from tests.recording_llm import SeeingLLM
from tests.test_index import make_document

TABLE: dict[str, MultiVector] = {
    "east": np.array([[1, 0, 0, 0]], dtype=np.float32),
    "north": np.array([[0, 1, 0, 0]], dtype=np.float32),
    "text 1": np.array([[1, 0, 0, 0], [0, 0, 1, 0]], dtype=np.float32),
    "text 2": np.array([[0.6, 0.8, 0, 0]], dtype=np.float32),
    "text 3": np.array([[-1, 0, 0, 0]], dtype=np.float32),
    "text 4": np.array([[0.6, 0.8, 0, 0]], dtype=np.float32),
}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[ColQwenIndex]:
    documents = [make_document(tmp_path, number, page_label=str(number)) for number in (4, 3, 2, 1)]
    for document in documents:
        document.excluded_llm_metadata_keys = ["document_id", "page_number"]
    made = ColQwenIndex.from_documents(documents, FakeEmbedder(TABLE, 4), uri=tmp_path / "p.db", show_progress=False)
    yield made
    made.store.close()


def size_of(image: Any) -> tuple[int, int]:  # noqa: ANN401 - a path or a stream, as LlamaIndex gives it
    with Image.open(image) as opened:
        opened.load()
        return opened.width, opened.height


def numbers(hits: list[Any]) -> list[int]:
    return [hit.metadata["page_number"] for hit in hits]


def test_pages_come_best_first_with_their_maxsim_and_ties_in_page_order(index: ColQwenIndex) -> None:
    hits = index.as_retriever(similarity_top_k=10).retrieve("east")
    assert numbers(hits) == [1, 2, 4, 3]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 0.6, 0.6, -1.0], abs=0.005)


def test_hits_are_image_nodes_whose_images_open(index: ColQwenIndex) -> None:
    for hit in index.as_retriever().retrieve("east"):
        assert isinstance(hit.node, ImageNode)
        assert size_of(hit.node.resolve_image()) == (20, 30)
        assert hit.node.get_content(MetadataMode.LLM).startswith("file_name: d.pdf\npage_label: ")


def test_a_hit_is_short_where_it_is_printed_and_its_words_boxes_stay_out_of_metadata(tmp_path: Path) -> None:
    pdf = write_text_pdf(tmp_path / "two.pdf", "tide gauge of the harbour " * 20, "valve of the pump")
    documents = PDFPageReader(image_dir=tmp_path / "images", ocr="never").load_data(pdf, show_progress=False)
    with ColQwenIndex.from_documents(documents, uri=tmp_path / "p.db", show_progress=False) as made:
        hits = made.as_retriever(similarity_top_k=2).retrieve("gauge of the harbour")
        assert made.refresh_ref_docs([hit.node for hit in hits], show_progress=False) == [False, False]
    for printed in (str(hits[0]), repr(hits[0]), str(hits[0].node), str(hits)):
        assert "two.pdf, page 1: 'tide gauge" in printed
        assert len(printed) < 300
        assert hits[0].node_id not in printed and "/" not in printed
    assert str(hits[0]).startswith(f"<{hits[0].score:.3f} two.pdf")
    assert len(str(hits[0].metadata)) < 600
    assert [word.text for word in word_boxes(hits[1].node)] == ["valve", "of", "the", "pump"]


def test_image_that_is_gone_is_named_in_the_log(index: ColQwenIndex, caplog: pytest.LogCaptureFixture) -> None:
    [hit] = index.as_retriever(similarity_top_k=1).retrieve("east")
    assert caplog.messages == []
    path = hit.node.image_path
    Path(str(path)).unlink()
    assert numbers(index.as_retriever(similarity_top_k=1).retrieve("east")) == [1]
    assert caplog.messages == [f"The image of d.pdf is gone: {path}. Index its file again."]


def test_image_that_is_gone_is_drawn_again_from_its_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pdf = write_text_pdf(tmp_path / "two.pdf", "tide gauge of the harbour", "valve of the pump")
    documents = PDFPageReader(image_dir=tmp_path / "images", ocr="never").load_data(pdf, show_progress=False)
    with ColQwenIndex.from_documents(documents, uri=tmp_path / "p.db", show_progress=False) as made:
        [hit] = made.as_retriever(similarity_top_k=1).retrieve("valve")
        path = Path(str(hit.node.image_path))
        drawn = path.read_bytes()
        path.unlink()
        [again] = made.as_retriever(similarity_top_k=1).retrieve("valve")
        assert again.node.hash == hit.node.hash
        assert path.read_bytes() == drawn
        path.unlink()
        pdf.write_bytes(pdf.read_bytes() + b"\n")  # another version
        made.as_retriever(similarity_top_k=1).retrieve("valve")
        assert not path.exists()
        assert "The image of two.pdf is gone" in caplog.text


def test_page_whose_image_is_gone_goes_to_the_model_as_text(index: ColQwenIndex) -> None:
    llm = SeeingLLM()
    for engine in (
        index.as_query_engine(llm=llm, similarity_top_k=2),
        index.as_query_engine(llm=llm, similarity_top_k=2, llm_max_pixels=150),
        RetrieverQueryEngine.from_args(index.as_retriever(similarity_top_k=2), llm=llm, multimodal=True),
    ):
        for found in index.as_retriever(similarity_top_k=1).retrieve("east"):
            Path(str(found.node.image_path)).unlink(missing_ok=True)
        assert str(engine.query("east")) == "1 images"
        assert "text 1" in llm.words()
        assert "page_label: 1" in llm.words()


def test_pages_whose_images_are_all_gone_are_named(index: ColQwenIndex) -> None:
    for found in index.as_retriever(similarity_top_k=4).retrieve("east"):
        Path(str(found.node.image_path)).unlink()
    engine = index.as_query_engine(llm=SeeingLLM(), similarity_top_k=2)
    with pytest.raises(
        DocumentNotFoundError, match=r"all pages.*gone \(d\.pdf, page 1; d\.pdf, page 2\).*multimodal=False"
    ):
        engine.query("east")
    text = index.as_query_engine(llm=MockLLM(), multimodal=False, similarity_top_k=1)
    assert "text 1" in str(text.query("east"))


def test_normalized_score_is_per_query_token(index: ColQwenIndex) -> None:
    query = QueryBundle("ignored", custom_embedding_strs=["east", "north"])
    plain = index.as_retriever(similarity_top_k=2).retrieve(query)
    normalized = index.as_retriever(similarity_top_k=2, score="normalized").retrieve(query)
    assert numbers(plain) == numbers(normalized) == [2, 4]
    assert [hit.score for hit in plain] == pytest.approx([1.4, 1.4], abs=0.01)
    assert [hit.score for hit in normalized] == pytest.approx([0.7, 0.7], abs=0.005)


def test_normalized_score_of_words_is_the_share_of_their_weight_that_a_page_has(tmp_path: Path) -> None:
    texts = ["barnacle " * 200, "the barnacle", "", "turbidity of the inner basin in week sixteen"]
    documents = [make_document(tmp_path, number, text) for number, text in enumerate(texts, 1)]
    with ColQwenIndex.from_documents(documents, "lexical", uri=tmp_path / "words.db", show_progress=False) as index:
        retriever = index.as_retriever(similarity_top_k=4, score="normalized")
        scores = {hit.metadata["page_number"]: hit.score or 0 for hit in retriever.retrieve("the barnacle")}
        assert 0.98 < scores[1] <= 1.0
        assert scores[2] > 0.9
        assert scores[3] >= -1.0
        cutoff = SimilarityPostprocessor(similarity_cutoff=0.3)
        for query, expected in (
            ("How turbid was the basin?", [4]),
            ("Which feast ends Ramadan?", []),
            ("zoblik wernat", []),
        ):
            assert numbers(cutoff.postprocess_nodes([*retriever.retrieve(query)])) == expected


def test_ranking_equals_exact_maxsim_over_all_pages(tmp_path: Path) -> None:
    table = {f"text {number}": unit_rows(number, 5 + number % 7, dim=16) for number in range(1, 61)}
    table["query"] = unit_rows(1000, 6, dim=16)
    documents = [make_document(tmp_path, number) for number in range(1, 61)]
    embedder = FakeEmbedder(table, dim=16)
    index = ColQwenIndex.from_documents(
        documents, embedder, uri=tmp_path / "p.db", vector_dtype="float16", show_progress=False
    )
    scores = {number: maxsim(table["query"], table[f"text {number}"]) for number in range(1, 61)}
    expected = sorted(scores, key=lambda number: -scores[number])
    assert numbers(index.as_retriever(similarity_top_k=60).retrieve("query")) == expected
    index.store.close()


def test_filters_choose_pages_before_they_are_ranked(index: ColQwenIndex) -> None:
    only = MetadataFilters(filters=[MetadataFilter(key="page_number", value=[2, 4], operator=FilterOperator.IN)])
    assert numbers(index.as_retriever(filters=only, similarity_top_k=1).retrieve("east")) == [2]
    assert numbers(index.as_query_engine(llm=MockLLM(), multimodal=False, filters=only).query("east").source_nodes) == [
        2,
        4,
    ]
    none = MetadataFilters(filters=[MetadataFilter(key="page_number", value=99)])
    assert index.as_retriever(filters=none).retrieve("east") == []


def test_filter_that_makes_no_sense_is_an_error_when_the_retriever_is_made(index: ColQwenIndex) -> None:
    odd = MetadataFilters(filters=[MetadataFilter(key="page_number", value=3, operator=FilterOperator.IN)])
    with pytest.raises(InvalidOptionError, match="takes a list"):
        index.as_retriever(filters=odd)


@pytest.mark.parametrize("options", [{"exact": True}, {"candidate_k": 1}, {"candidate_k": 1000}])
def test_asking_for_more_pages_than_there_are_gives_all(index: ColQwenIndex, options: dict[str, Any]) -> None:
    hits = index.as_retriever(similarity_top_k=500, **options).retrieve("east")
    assert len(hits) == index.store.count()
    assert [hit.score for hit in hits] == sorted((hit.get_score() for hit in hits), reverse=True)


async def test_async_equals_sync_and_does_not_block_the_loop(index: ColQwenIndex) -> None:
    class Slow(FakeEmbedder):
        def embed_queries(self, queries: Any) -> list[MultiVector]:  # noqa: ANN401
            time.sleep(0.5)
            return super().embed_queries(queries)

    retriever = ColQwenRetriever(index.store, Slow(TABLE, 4))
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.02)
            ticks += 1

    ticking = asyncio.create_task(tick())
    hits = await retriever.aretrieve("east")
    ticking.cancel()
    assert ticks >= 10
    assert [(hit.node_id, hit.score) for hit in hits] == [
        (hit.node_id, hit.score) for hit in retriever.retrieve("east")
    ]


def test_every_retrieval_gives_new_nodes(index: ColQwenIndex) -> None:
    retriever = index.as_retriever()
    first = retriever.retrieve("east")
    first[0].score = -99
    first[0].node.metadata["changed"] = True
    again = retriever.retrieve("east")
    assert again[0].score == pytest.approx(1.0, abs=0.005)
    assert "changed" not in again[0].node.metadata


def test_fusion_with_another_retriever_keeps_all_pages(index: ColQwenIndex) -> None:
    fused = QueryFusionRetriever(
        [index.as_retriever(score="normalized"), index.as_retriever()],
        llm=MockLLM(),
        mode="relative_score",  # type: ignore[arg-type]
        num_queries=1,
        similarity_top_k=4,
        use_async=False,
    )
    assert numbers(fused.retrieve("east")) == [1, 2, 4]


@pytest.fixture
def worded_index(tmp_path: Path) -> Iterator[ColQwenIndex]:
    """Six pages of words, in three files."""
    texts = ["tide gauge", "tide tables of the harbour", "pump and valve", "valve of the pump", "harbour dues", "salt"]
    documents = [make_document(tmp_path, number, text=text) for number, text in enumerate(texts, 1)]
    for number, document in enumerate(documents):
        document.metadata["file_name"] = f"{'cba'[number // 2]}.pdf"
    with ColQwenIndex.from_documents(documents, uri=tmp_path / "w.db", show_progress=False) as made:
        yield made


@pytest.mark.parametrize("mode", ["reciprocal_rerank", "relative_score", "dist_based_score", "simple"])
def test_fusion_with_bm25_over_the_same_pages_knows_them_as_the_same(worded_index: ColQwenIndex, mode: str) -> None:
    bm25 = pytest.importorskip("llama_index.retrievers.bm25", reason="it refuses the newest PyStemmer")
    words = bm25.BM25Retriever.from_defaults(nodes=list(worded_index.nodes()), similarity_top_k=6)
    pages = worded_index.as_retriever(similarity_top_k=6, score="normalized")
    fused = QueryFusionRetriever(
        [pages, words],
        llm=MockLLM(),
        mode=mode,  # type: ignore[arg-type]
        num_queries=1,
        similarity_top_k=6,
        use_async=False,
    )
    hits = fused.retrieve("tide tables of the harbour")
    assert sorted(numbers(hits)) == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(hit.node, ImageNode) and Path(str(hit.node.image_path)).exists() for hit in hits)
    if mode != "simple":
        assert numbers(hits)[0] == 2


async def test_nodes_are_those_that_are_retrieved_by_file_and_page_number(worded_index: ColQwenIndex) -> None:
    nodes = worded_index.nodes()
    assert [(node.metadata["file_name"], node.metadata["page_number"]) for node in nodes] == [
        ("a.pdf", 5),
        ("a.pdf", 6),
        ("b.pdf", 3),
        ("b.pdf", 4),
        ("c.pdf", 1),
        ("c.pdf", 2),
    ]
    found = {hit.node.node_id: hit.node for hit in worded_index.as_retriever(similarity_top_k=6).retrieve("pump")}
    assert {node.node_id: node.hash for node in nodes} == {name: node.hash for name, node in found.items()}
    filters = MetadataFilters(filters=[MetadataFilter(key="file_name", value="b.pdf")])
    assert [node.metadata["page_number"] for node in await worded_index.anodes(filters)] == [3, 4]


@pytest.mark.parametrize("query", ["", "   ", "\n\t"])
def test_blank_query_is_an_error(index: ColQwenIndex, query: str) -> None:
    with pytest.raises(QueryError, match="empty"):
        index.as_retriever().retrieve(query)


def test_words_only_embedders_refuse_an_image(index: ColQwenIndex) -> None:
    for words in ("", "east"):
        with pytest.raises(QueryError, match=r"page\.png, and fake finds pages by their words only.*visual embedder"):
            index.as_retriever().retrieve(QueryBundle(words, image_path="page.png"))


class ColourEmbedder(FakeEmbedder):
    """Sees the mean colour of a page, and knows the names of three."""

    sees_images = True

    def __init__(self) -> None:
        super().__init__(
            {name: np.eye(3, dtype=np.float32)[[place]] for place, name in enumerate(("red", "green", "blue"))}, 3
        )

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        means = [np.asarray(page.open_image().convert("RGB"), np.float32).mean((0, 1))[None] for page in pages]
        return [mean / np.linalg.norm(mean) for mean in means]


@pytest.fixture
def coloured(tmp_path: Path) -> Iterator[ColQwenIndex]:
    documents = [make_document(tmp_path, number) for number in (1, 2, 3)]
    for document, colour in zip(documents, ("red", "lime", "blue"), strict=True):
        Image.new("RGB", (20, 30), colour).save(str(document.image_path))
    with ColQwenIndex.from_documents(documents, ColourEmbedder(), uri=tmp_path / "c.db", show_progress=False) as made:
        yield made


async def test_an_image_finds_the_pages_that_look_like_it(coloured: ColQwenIndex, tmp_path: Path) -> None:
    Image.new("RGB", (7, 5), (10, 240, 40)).save(tmp_path / "greenish.png")
    retriever = coloured.as_retriever(score="normalized")
    greenish = QueryBundle("", image_path=str(tmp_path / "greenish.png"))
    for hits in (retriever.retrieve(greenish), await retriever.aretrieve(greenish)):
        assert numbers(hits) == [2, 3, 1]
        assert hits[0].score == pytest.approx(0.985, abs=0.01)
    both = retriever.retrieve(QueryBundle("red", image_path=str(tmp_path / "greenish.png")))
    assert numbers(both)[:2] == [1, 2]
    assert both[1].score == pytest.approx(0.985 / 2, abs=0.01)


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_query_s_image_that_cannot_be_read_is_named(
    coloured: ColQwenIndex, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "q.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(QueryError, match=r"query's image, \S*q\.png, cannot be read"):
        coloured.as_retriever().retrieve(QueryBundle("", image_path=str(path)))


class Heard(BaseEventHandler):
    """Keeps the embedding events that it hears."""

    _events: list[BaseEvent] = PrivateAttr(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:  # noqa: ANN401
        if isinstance(event, (EmbeddingStartEvent, EmbeddingEndEvent)):
            self._events.append(event)


def test_embedding_is_heard_of_as_of_llamaindex_s_embeddings(tmp_path: Path) -> None:
    heard, counter = Heard(), LlamaDebugHandler(print_trace_on_end=False)
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(heard)
    try:
        documents = [make_document(tmp_path, number) for number in (1, 2)]
        with ColQwenIndex.from_documents(documents, uri=tmp_path / "e.db", show_progress=False) as made:
            made.as_retriever(callback_manager=CallbackManager([counter])).retrieve("text 1")
    finally:
        dispatcher.event_handlers.remove(heard)
    indexed, indexed_end, asked, asked_end = heard._events
    assert isinstance(indexed, EmbeddingStartEvent) and isinstance(indexed_end, EmbeddingEndEvent)
    assert indexed_end.chunks == ["d.pdf, page 1", "d.pdf, page 2"]
    assert isinstance(asked, EmbeddingStartEvent) and isinstance(asked_end, EmbeddingEndEvent)
    assert asked.model_dict == {"class_name": "LexicalEmbedder", "model_name": "lexical", "dim": 256}
    assert asked_end.chunks == ["text 1"]
    assert {len(row) for row in asked_end.embeddings} == {256}
    [(start, end)] = counter.get_event_pairs(CBEventType.EMBEDDING)
    assert end.payload is not None and end.payload["chunks"] == ["text 1"]


def test_surrounding_space_is_stripped(index: ColQwenIndex) -> None:
    assert numbers(index.as_retriever().retrieve("\n east \n")) == [1, 2, 4]


def test_empty_collection_gives_no_hits(index: ColQwenIndex) -> None:
    index.delete_ref_doc("d")
    assert index.as_retriever().retrieve("east") == []


def test_another_embedder_is_refused_when_the_retriever_is_made(index: ColQwenIndex) -> None:
    other = FakeEmbedder(TABLE, 4, name="other")
    with pytest.raises(FingerprintMismatchError, match="made by fake.*this embedder is other"):
        ColQwenRetriever(index.store, other)
    assert isinstance(other.fingerprint, EmbedderFingerprint)


@pytest.mark.parametrize("options", [{"similarity_top_k": 0}, {"candidate_k": 0}, {"score": "cosine"}])
def test_options_nobody_understands_are_refused(index: ColQwenIndex, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=str(next(iter(options)))):
        index.as_retriever(**options)
    with pytest.raises(TypeError):
        index.as_retriever(top_k=3)  # type: ignore[call-arg]


def test_options_can_be_read_and_set(index: ColQwenIndex) -> None:
    retriever = index.as_retriever(similarity_top_k=1)
    assert (retriever.similarity_top_k, retriever.candidate_k, retriever.score) == (1, 100, "maxsim")
    assert (retriever.filters, retriever.exact) == (None, False)
    assert numbers(retriever.retrieve("east")) == [1]
    retriever.similarity_top_k = 2
    assert len(retriever.retrieve("east")) == 2
    retriever.score = "normalized"
    assert retriever.retrieve("east")[0].score == pytest.approx(1)
    retriever.filters = MetadataFilters(filters=[MetadataFilter(key="page_number", value=2)])
    assert numbers(retriever.retrieve("east")) == [2]
    retriever.exact, retriever.candidate_k = True, 7
    assert numbers(retriever.retrieve("east")) == [2]
    for name, value in [("similarity_top_k", 0), ("candidate_k", "many"), ("score", "cosine"), ("exact", 1)]:
        with pytest.raises(InvalidOptionError, match=name):
            setattr(retriever, name, value)
    with pytest.raises(InvalidOptionError, match="filters"):
        retriever.filters = {"page_number": 2}  # type: ignore[assignment]
    assert numbers(retriever.retrieve("east")) == [2]


def test_retriever_options_reach_the_retriever_of_a_query_engine(index: ColQwenIndex) -> None:
    only = MetadataFilters(filters=[MetadataFilter(key="page_number", value=3, operator=FilterOperator.NE)])
    engine = index.as_query_engine(
        MockLLM(),
        multimodal=False,
        similarity_top_k=2,
        candidate_k=400,
        filters=only,
        score="normalized",
        exact=True,
    )
    retriever = engine.retriever  # type: ignore[attr-defined]
    assert (retriever.similarity_top_k, retriever.candidate_k, retriever.score) == (2, 400, "normalized")
    assert (retriever.filters, retriever.exact) == (only, True)
    with pytest.raises(TypeError, match="foo"):
        index.as_query_engine(MockLLM(), foo=1)  # type: ignore[call-arg]


def test_a_query_engine_takes_all_that_llama_index_s_does() -> None:
    theirs = set(inspect.signature(RetrieverQueryEngine.from_args).parameters) - {"retriever", "kwargs"}
    assert theirs <= set(inspect.signature(ColQwenIndex.as_query_engine).parameters)


async def test_query_engine_shows_the_model_the_pages_and_returns_them_as_sources(index: ColQwenIndex) -> None:
    llm = SeeingLLM()
    engine = index.as_query_engine(llm=llm, multimodal=True, similarity_top_k=2)
    for response in (engine.query("east"), await engine.aquery("east")):
        assert str(response) == "2 images"
        assert numbers(response.source_nodes) == [1, 2]
    shown = [size_of(block.resolve_image()) for block in llm.images()]
    assert shown == [(20, 30), (20, 30)]
    assert "file_name: d.pdf" in llm.words()
    assert "document_id" not in llm.words()


def test_query_engine_scales_pages_down_for_the_model_and_keeps_the_whole_image_in_its_sources(
    index: ColQwenIndex,
) -> None:
    llm = SeeingLLM()
    response = index.as_query_engine(llm=llm, similarity_top_k=2, llm_max_pixels=150).query("east")
    assert [size_of(block.resolve_image()) for block in llm.images()] == [(10, 15), (10, 15)]
    assert [size_of(found.node.image_path) for found in response.source_nodes] == [(20, 30), (20, 30)]  # type: ignore[attr-defined]
    assert numbers(response.source_nodes) == [1, 2]


def test_text_mode_gives_the_model_the_pages_text(index: ColQwenIndex) -> None:
    engine = index.as_query_engine(llm=MockLLM(), multimodal=False, similarity_top_k=1)
    assert "text 1" in str(engine.query("east"))  # MockLLM answers with its prompt


def test_retriever_drops_into_other_engines_and_tools(index: ColQwenIndex) -> None:
    retriever = index.as_retriever(similarity_top_k=1)
    engine = RetrieverQueryEngine.from_args(retriever, llm=SeeingLLM(), multimodal=True)
    assert str(engine.query("east")) == "1 images"
    cited = CitationQueryEngine.from_args(index, retriever=retriever, llm=MockLLM()).query("east")  # type: ignore[arg-type]
    assert "text 1" in cited.source_nodes[0].node.get_content()
    tool = RetrieverTool.from_defaults(retriever, name="pages", description="Find pages.")
    assert "text 1" in str(tool.call("east"))
