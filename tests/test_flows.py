"""What LlamaIndex users do with a retriever, done with this one; and exactly what a model is sent by it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.llms.mock import MockLLM
from llama_index.core.postprocessor import LLMRerank, LongContextReorder, SimilarityPostprocessor
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.retrievers import RecursiveRetriever, RouterRetriever, TransformRetriever
from llama_index.core.schema import IndexNode, QueryBundle
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool, RetrieverTool
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from PIL import Image

from llama_index_colqwen import ColQwenIndex, InvalidOptionError, PagePromptHelper, PDFPageReader
from tests.documents import write_text_pdf
from tests.recording_llm import SeeingLLM

QUESTION = "Which valve of the pump leaks?"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ColQwenIndex]:
    """Four pages as the reader makes them, of two files."""
    folder = tmp_path_factory.mktemp("flows")
    write_text_pdf(folder / "pump.pdf", "valve of the pump leaks", "a pump and its valve", "a spare valve")
    write_text_pdf(folder / "tide.pdf", "tide gauge of the harbour")
    documents = PDFPageReader(image_dir=folder / "images", ocr="never").load_data(folder, show_progress=False)
    with ColQwenIndex.from_documents(documents, uri=folder / "p.db", show_progress=False) as made:
        yield made


@pytest.fixture
def llm() -> SeeingLLM:
    return SeeingLLM()


def captioned(messages: list[ChatMessage]) -> list[str]:
    """Return the page that the text right before each picture names; no two pictures share a text."""
    blocks = [block for message in messages for block in message.blocks]
    pages = []
    for place, block in enumerate(blocks):
        if isinstance(block, ImageBlock):
            before = blocks[place - 1]
            assert isinstance(before, TextBlock), "a picture without a text before it"
            [(name, label)] = re.findall(r"file_name: (\S+)\npage_label: (\S+)", before.text)[-1:]
            pages.append(f"{name}, page {label}")
    return pages


def assert_nothing_leaks(llm: SeeingLLM, index: ColQwenIndex) -> None:
    for call in range(len(llm.calls)):
        words = llm.words(call)
        assert str(Path(index.store.uri).parent) not in words, "a local path"
        assert not re.search(r"[0-9a-f]{32}|[A-Za-z0-9+/]{80}", words), "a hash or base64"


FOUND = ["pump.pdf, page 1", "pump.pdf, page 2", "pump.pdf, page 3"]


# ---- query engines


MODES = ["compact", "refine", "tree_summarize", "simple_summarize", "accumulate", "compact_accumulate"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("streaming", [False, True])
async def test_every_mode_shows_each_picture_with_its_caption(
    index: ColQwenIndex, llm: SeeingLLM, mode: str, streaming: bool
) -> None:
    if streaming and "accumulate" in mode:
        pytest.skip("LlamaIndex does not stream in this mode")
    engine = index.as_query_engine(llm, response_mode=mode, streaming=streaming)
    response = await asyncio.to_thread(engine.query, QUESTION)
    assert "images" in str(response)
    one_by_one = mode in ("refine", "accumulate")
    assert [captioned(call) for call in llm.calls] == ([[page] for page in FOUND] if one_by_one else [FOUND])
    llm.calls.clear()
    answer: Any = await engine.aquery(QUESTION)
    assert "images" in str(await answer.get_response() if streaming else answer)
    assert sorted(sum(map(captioned, llm.calls), [])) == sorted(FOUND)
    assert_nothing_leaks(llm, index)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("window", [1500, 3900, 6000])
def test_a_small_context_parts_no_picture_from_its_caption(index: ColQwenIndex, mode: str, window: int) -> None:
    llm = SeeingLLM(context_window=window)
    index.as_query_engine(llm, response_mode=mode).query(QUESTION)
    assert sum(map(captioned, llm.calls), []) == FOUND
    if mode == "compact":
        assert [len(captioned(call)) for call in llm.calls] == ([2, 1] if window == 6000 else [1, 1, 1])


def test_text_is_still_cut_to_the_context(llm: SeeingLLM) -> None:
    helper = PagePromptHelper.from_llm_metadata(SeeingLLM(context_window=800).metadata)
    from llama_index.core.prompts.default_prompts import DEFAULT_TEXT_QA_PROMPT

    long = [ChatMessage(content="word " * 2000)]
    packed = helper.repack(DEFAULT_TEXT_QA_PROMPT, long)
    assert len(packed) > 3
    assert " ".join(str(part.content) for part in packed).split() == ["word"] * 2000
    assert len(str(helper.truncate(DEFAULT_TEXT_QA_PROMPT, long)[0].content).split()) < 800


def test_citations_name_the_page_of_each_picture(index: ColQwenIndex) -> None:
    for window in (100_000, 3900):
        llm = SeeingLLM(context_window=window)
        Settings.chat_prompt_helper = PagePromptHelper.from_llm_metadata(llm.metadata)
        try:
            engine = CitationQueryEngine.from_args(index, llm=llm, multimodal=True)  # type: ignore[arg-type]
            response = engine.query(QUESTION)
        finally:
            Settings._chat_prompt_helper = None
        assert len(response.source_nodes) == 3
        assert sum(map(captioned, llm.calls), []) == FOUND
        words = "\n".join(llm.words(call) for call in range(len(llm.calls)))
        assert all(f"Source {number}:" in words for number in (1, 2, 3))
        assert_nothing_leaks(llm, index)


def test_text_citations_split_pages_and_name_them(index: ColQwenIndex, llm: SeeingLLM) -> None:
    response = CitationQueryEngine.from_args(index, llm=llm, similarity_top_k=2).query(QUESTION)  # type: ignore[arg-type]
    assert "file_name: pump.pdf\npage_label: 1\n\nSource 1:\nvalve of the pump leaks" in llm.words()
    assert response.source_nodes[0].node.metadata["page_label"] == "1"
    assert_nothing_leaks(llm, index)


def test_a_completion_model_is_told_how_to_be_asked(index: ColQwenIndex) -> None:
    completing = MockLLM()
    assert not completing.metadata.is_chat_model
    for make in (index.as_query_engine, index.as_chat_engine):
        with pytest.raises(InvalidOptionError, match=r"MockLLM\) is no chat model.*multimodal=False"):
            make(llm=completing)
    assert "valve of the pump leaks" in str(index.as_query_engine(completing, multimodal=False).query(QUESTION))


async def test_pages_are_structured_answers_too(index: ColQwenIndex) -> None:
    from pydantic import BaseModel

    class Leak(BaseModel):
        part: str

    llm = SeeingLLM(answer='{"part": "valve"}')
    response = await index.as_query_engine(llm, output_cls=Leak).aquery(QUESTION)
    assert response.response == Leak(part="valve")  # type: ignore[union-attr]
    assert captioned(llm.calls[0]) == FOUND


# ---- chat engines


@pytest.mark.parametrize("mode", ["best", "context", "condense_question"])
async def test_a_chat_sees_the_pages_of_every_message(index: ColQwenIndex, llm: SeeingLLM, mode: str) -> None:
    engine = index.as_chat_engine(mode, llm, similarity_top_k=2, llm_max_pixels=40_000)
    first = await asyncio.to_thread(engine.chat, QUESTION)
    assert str(first) == "2 images"
    assert [hit.node.metadata["page_label"] for hit in first.source_nodes] == ["1", "2"]
    shown = [Image.open(block.resolve_image()) for block in llm.images()]  # type: ignore[arg-type]
    assert all(image.width * image.height <= 40_000 for image in shown)
    if mode == "condense_question":
        assert captioned(llm.calls[-1]) == FOUND[:2]
    else:
        assert "Picture 1: pump.pdf, page 1\nPicture 2: pump.pdf, page 2" in llm.words()
    second = await engine.achat("Where is its spare valve?")
    assert str(second) == "2 images"
    assert len(second.source_nodes) == 2
    assert len(llm.images()) == 2, "pictures of earlier turns are not sent again"
    assert QUESTION in llm.words(-1 if mode != "condense_question" else -2)
    streamed = "".join(engine.stream_chat("And the tide?").response_gen)
    assert streamed == "2 images"
    assert_nothing_leaks(llm, index)


def test_a_chat_over_text(index: ColQwenIndex, llm: SeeingLLM) -> None:
    engine = index.as_chat_engine(ChatMode.CONTEXT, llm, multimodal=False, system_prompt="Be brief.")
    engine.chat(QUESTION)
    assert llm.images() == []
    assert "valve of the pump leaks" in llm.words() and "Be brief." in llm.words()


@pytest.mark.parametrize("mode", ["simple", "react", "chatty"])
def test_chat_modes_that_look_at_no_pages_are_refused(index: ColQwenIndex, llm: SeeingLLM, mode: str) -> None:
    with pytest.raises(InvalidOptionError, match="chat_mode is best, condense_plus_context, context or"):
        index.as_chat_engine(mode, llm)


def test_a_chat_goes_on_with_text_where_an_image_is_gone(tmp_path: Path, llm: SeeingLLM) -> None:
    pdf = write_text_pdf(tmp_path / "two.pdf", "tide gauge", "valve of the pump")
    documents = PDFPageReader(image_dir=tmp_path / "images", ocr="never").load_data(pdf, show_progress=False)
    with ColQwenIndex.from_documents(documents, uri=tmp_path / "p.db", show_progress=False) as made:
        pdf.unlink()
        Path(str(documents[0].metadata["file_path"])).unlink(missing_ok=True)
        next(iter(sorted((tmp_path / "images").rglob("*.jpg")))).unlink()
        made.as_chat_engine("context", llm).chat("tide gauge and valve")
    assert len(llm.images()) == 1
    assert "Picture 1: two.pdf, page 2" in llm.words() and "tide gauge" in llm.words()


# ---- what other retrievers and engines are made of


def test_routers_choose_it(index: ColQwenIndex) -> None:
    llm = SeeingLLM(answer='[{"choice": 1, "reason": "pages"}]')
    retriever = index.as_retriever(similarity_top_k=1)
    routed = RouterRetriever(
        LLMSingleSelector.from_defaults(llm), [RetrieverTool.from_defaults(retriever, description="Pages.")], llm
    )
    assert [hit.node.metadata["page_label"] for hit in routed.retrieve(QUESTION)] == ["1"]
    engine = RouterQueryEngine(
        LLMSingleSelector.from_defaults(llm),
        [QueryEngineTool.from_defaults(index.as_query_engine(llm, similarity_top_k=1), description="Pages.")],
        llm,
    )
    assert engine.query(QUESTION).source_nodes[0].node.metadata["file_name"] == "pump.pdf"
    assert captioned(llm.calls[-1]) == FOUND[:1]


def test_a_recursive_retriever_reaches_it(index: ColQwenIndex) -> None:
    class Links(type(index.as_retriever())):  # type: ignore[misc]
        def _retrieve(self, query_bundle: QueryBundle) -> list[Any]:
            from llama_index.core.schema import NodeWithScore

            return [NodeWithScore(node=IndexNode(text="see the pages", index_id="pages"), score=1.0)]

    root = Links(index.store, index.embedder)
    recursive = RecursiveRetriever("root", {"root": root, "pages": index.as_retriever(similarity_top_k=1)})
    assert [hit.node.metadata["page_label"] for hit in recursive.retrieve(QUESTION)] == ["1"]


def test_sub_questions_are_answered_from_pages(index: ColQwenIndex) -> None:
    asking = SeeingLLM(answer='```json\n{"items": [{"sub_question": "Which valve leaks?", "tool_name": "pages"}]}\n```')
    answering = SeeingLLM()
    engine = SubQuestionQueryEngine.from_defaults(
        [QueryEngineTool.from_defaults(index.as_query_engine(answering), name="pages", description="Pages.")],
        llm=answering,
        question_gen=LLMQuestionGenerator.from_defaults(asking),
        use_async=False,
        verbose=False,
    )
    engine.query(QUESTION)
    assert captioned(answering.calls[0])[0] == FOUND[0]


def test_hyde_looks_for_what_the_model_imagines(index: ColQwenIndex) -> None:
    imagining = SeeingLLM(answer="tide gauge of the harbour")
    hyde = HyDEQueryTransform(llm=imagining, include_original=False)
    [hit] = TransformRetriever(index.as_retriever(similarity_top_k=1), hyde).retrieve("How high is the water?")
    assert hit.node.metadata["file_name"] == "tide.pdf"
    llm = SeeingLLM()
    engine = TransformQueryEngine(index.as_query_engine(llm, similarity_top_k=1), hyde)
    assert engine.query("How high is the water?").source_nodes[0].node.metadata["file_name"] == "tide.pdf"
    assert captioned(llm.calls[0]) == ["tide.pdf, page 1"]


async def test_retriever_evaluator_measures_it(index: ColQwenIndex) -> None:
    retriever = index.as_retriever(similarity_top_k=3)
    best = retriever.retrieve(QUESTION)[0].node.node_id
    evaluator = RetrieverEvaluator.from_metric_names(["hit_rate", "mrr"], retriever=retriever)
    result = await evaluator.aevaluate(QUESTION, [best])
    assert result.metric_vals_dict == {"hit_rate": 1.0, "mrr": 1.0}


def test_llamaindex_postprocessors_take_the_hits(index: ColQwenIndex) -> None:
    hits = index.as_retriever(similarity_top_k=3, score="normalized").retrieve(QUESTION)
    cutoff = (hits[0].get_score() + hits[1].get_score()) / 2
    assert SimilarityPostprocessor(similarity_cutoff=cutoff).postprocess_nodes(list(hits)) == hits[:1]
    assert len(LongContextReorder().postprocess_nodes(list(hits))) == 3
    choosing = SeeingLLM(answer="Doc: 2, Relevance: 9")
    reranked = LLMRerank(llm=choosing, top_n=1).postprocess_nodes(list(hits), query_str=QUESTION)
    assert [hit.node.node_id for hit in reranked] == [hits[1].node.node_id]
    assert_nothing_leaks(choosing, index)


async def test_it_runs_in_a_workflow(index: ColQwenIndex) -> None:
    class Find(Workflow):
        @step
        async def find(self, event: StartEvent) -> StopEvent:
            return StopEvent(result=await index.as_retriever(similarity_top_k=1).aretrieve(event.question))

    found: Any = await Find().run(question=QUESTION)
    [hit] = found
    assert hit.node.image_path is not None


async def test_synchronous_calls_work_in_a_running_event_loop(index: ColQwenIndex, llm: SeeingLLM) -> None:
    assert index.as_retriever(similarity_top_k=1).retrieve(QUESTION)[0].node.metadata["page_label"] == "1"
    assert str(index.as_query_engine(llm, response_mode="refine").query(QUESTION)) == "1 images"


def test_a_docstore_and_documents_as_llamaindex_has_them(index: ColQwenIndex) -> None:
    hit = index.as_retriever(similarity_top_k=1).retrieve(QUESTION)[0]
    docstore = index.docstore
    assert len(docstore.docs) == 4
    assert docstore.get_node(hit.node.node_id).hash == hit.node.hash
    info = index.ref_doc_info
    assert sorted((one.metadata["file_name"], len(one.node_ids)) for one in info.values()) == [
        ("pump.pdf", 3),
        ("tide.pdf", 1),
    ]
    assert hit.node.node_id in info[hit.node.metadata["document_id"]].node_ids
    bm25 = pytest.importorskip("llama_index.retrievers.bm25", reason="it refuses the newest PyStemmer")
    found = bm25.BM25Retriever.from_defaults(index=index, similarity_top_k=1).retrieve("leaks")
    assert found[0].node.hash == hit.node.hash


def test_documents_are_updated_and_deleted_as_in_llamaindex(tmp_path: Path) -> None:
    pdf = write_text_pdf(tmp_path / "two.pdf", "tide gauge", "valve of the pump")
    documents = PDFPageReader(image_dir=tmp_path / "images", ocr="never").load_data(pdf, show_progress=False)
    with ColQwenIndex.from_documents(documents, uri=tmp_path / "p.db", show_progress=False) as made:
        documents[0].metadata["team"] = "harbour"
        made.update_ref_doc(documents[0])
        assert [node.metadata.get("team") for node in made.nodes()] == ["harbour", None]
        made.delete_ref_doc(documents[0].metadata["document_id"], delete_from_docstore=True)
        assert made.ref_doc_info == {}
