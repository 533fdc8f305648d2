from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from PIL import Image

pytest.importorskip("langchain_core", reason="the [langchain] extra is not installed")
pytest.importorskip("langchain_tests", reason="it is of the group dev")
from langchain_classic.retrievers import EnsembleRetriever
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.block_translators.openai import convert_to_openai_image_block
from langchain_core.outputs import ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import create_retriever_tool
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import PrivateAttr

from llama_index_colqwen import ColQwenIndex, ColQwenLangChainRetriever, PDFPageReader, QueryError
from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError
from llama_index_colqwen.integrations.langchain import content_blocks
from llama_index_colqwen.retriever import Mode
from tests.documents import write_text_pdf

PAGES = ("Salinity of the harbour basin", "Turbidity of the harbour basin", "", "", "Height of the harbour quay")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ColQwenIndex]:
    folder = tmp_path_factory.mktemp("langchain")
    pdfs = [
        write_text_pdf(folder / "harbour.pdf", *PAGES),
        write_text_pdf(folder / "canal.pdf", "Depth of the canal"),
    ]
    documents = PDFPageReader(image_dir=folder / "pages", ocr="never").lazy_load_data(pdfs)
    made = ColQwenIndex.from_documents(documents, uri=folder / "x.db", show_progress=False)
    yield made
    made.close()


class TestStandard(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _index(self, index: ColQwenIndex) -> None:
        self.index = index

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return ColQwenLangChainRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": self.index}

    @property
    def retriever_query_example(self) -> str:
        return "How salty is the harbour?"


def pages(documents: list[Document]) -> list[tuple[str, int]]:
    return [(document.metadata["file_name"], document.metadata["page_number"]) for document in documents]


async def test_documents_are_pages_best_first(index: ColQwenIndex) -> None:
    retriever = ColQwenLangChainRetriever(index, k=2)
    found = retriever.invoke("turbidity of the harbour basin")
    assert pages(found) == [("harbour.pdf", 2), ("harbour.pdf", 1)]
    assert found[0].page_content.strip() == "Turbidity of the harbour basin"
    hit = index.as_retriever().retrieve("turbidity of the harbour basin")[0]
    assert found[0].id == hit.node_id == found[0].metadata["page_id"]
    assert found[0].metadata["score"] == hit.get_score() > found[1].metadata["score"]
    assert found == await retriever.ainvoke("turbidity of the harbour basin")


def test_metadata_are_what_people_need_of_a_page(index: ColQwenIndex) -> None:
    (found,) = ColQwenLangChainRetriever(index, k=1).invoke("depth of the canal")
    assert set(found.metadata) == {"file_name", "page_label", "page_number", "page_id", "source", "score", "image_path"}
    assert found.metadata["source"] == "canal.pdf, page 1"
    assert Path(found.metadata["image_path"]).read_bytes().startswith(b"\xff\xd8")


async def test_number_and_filters_can_be_given_with_the_question(index: ColQwenIndex) -> None:
    retriever = ColQwenLangChainRetriever(index, k=1, filters={"file_name": "harbour.pdf"})
    question = "harbour basin"
    assert len(retriever.invoke(question)) == len(await retriever.ainvoke(question)) == 1
    assert len(retriever.invoke(question, k=4)) == len(await retriever.ainvoke(question, k=4)) == 4
    for filters in (
        {"file_name": "canal.pdf"},
        {"file_name": ["canal.pdf", "other.pdf"], "page_number": 1},
        MetadataFilters(filters=[MetadataFilter(key="file_name", value="canal.pdf")]),
    ):
        assert pages(retriever.invoke(question, k=9, filters=filters)) == [("canal.pdf", 1)]
        assert pages(await retriever.ainvoke(question, k=9, filters=filters)) == [("canal.pdf", 1)]
    assert {name for name, _ in pages(retriever.invoke(question, k=9))} == {"harbour.pdf"}
    retriever.k = 2
    assert len(retriever.batch([question, "canal"])[0]) == 2


async def test_pages_are_ranked_by_what_is_asked_for(index: ColQwenIndex) -> None:
    question = "harbour basin"
    seen = set()
    for mode in get_args(Mode):
        retriever = ColQwenLangChainRetriever(index, k=2, mode=mode)
        expected = [hit.score for hit in index.as_retriever(similarity_top_k=2, mode=mode).retrieve(question)]
        for found in (retriever.invoke(question), await retriever.ainvoke(question)):
            assert [document.metadata["score"] for document in found] == expected
        seen.add(tuple(expected))
    assert len(seen) == len(get_args(Mode))


@pytest.mark.parametrize(
    "options",
    [{"k": 0}, {"k": True}, {"filters": {"page_number": None}}, {"filters": {"a": object()}}, {"filters": 3}],
)
def test_options_that_make_no_sense_are_our_error(index: ColQwenIndex, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        ColQwenLangChainRetriever(index, **options)
    with pytest.raises(InvalidOptionError):
        ColQwenLangChainRetriever(index).invoke("harbour", **options)


def test_options_that_are_none_and_empty_questions_are_refused(index: ColQwenIndex) -> None:
    with pytest.raises(TypeError, match="top_k"):
        ColQwenLangChainRetriever(index, top_k=3)  # type: ignore[call-arg]
    with pytest.raises(InvalidOptionError, match="mode is one of visual, text, hybrid; got 'words'"):
        ColQwenLangChainRetriever(index, mode="words")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="index is a ColQwenIndex; got str"):
        ColQwenLangChainRetriever("./colqwen.db")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="top_k"):
        ColQwenLangChainRetriever(index).invoke("harbour", top_k=3)
    with pytest.raises(QueryError, match="The query is empty"):
        ColQwenLangChainRetriever(index).invoke(" ")


async def test_ensemble_keeps_pages_without_text_apart_by_their_id(index: ColQwenIndex) -> None:
    blank = ColQwenLangChainRetriever(index, k=2, filters={"page_number": [3, 4]})
    both = ColQwenLangChainRetriever(index, k=5, filters={"file_name": "harbour.pdf"})
    ensemble = EnsembleRetriever(retrievers=[blank, both], weights=[0.5, 0.5], id_key="page_id")
    numbers = sorted(number for _, number in pages(ensemble.invoke("harbour basin")))
    assert numbers == sorted(number for _, number in pages(await ensemble.ainvoke("harbour basin"))) == [1, 2, 3, 4, 5]
    merged = EnsembleRetriever(retrievers=[blank, both], weights=[0.5, 0.5]).invoke("harbour basin")
    assert len(merged) == 4  # what the key is for


def test_callbacks_are_told(index: ColQwenIndex) -> None:
    class Log(BaseCallbackHandler):
        said: list[str]

        def __init__(self) -> None:
            self.said = []

        def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:  # noqa: ANN401
            self.said.append(query)

        def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:  # noqa: ANN401
            self.said.append(f"{len(documents)} documents")

    log = Log()
    ColQwenLangChainRetriever(index, k=2).invoke("harbour", {"callbacks": [log]})
    assert log.said == ["harbour", "2 documents"]


class SeeingModel(GenericFakeChatModel):
    """Answers something, and keeps what it was sent."""

    _sent: list[list[BaseMessage]] = PrivateAttr(default_factory=list)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:  # noqa: ANN401
        self._sent.append(messages)
        return super()._generate(messages, *args, **kwargs)


def test_a_chain_shows_a_vision_model_captions_and_pictures(index: ColQwenIndex) -> None:
    model = SeeingModel(messages=iter([AIMessage("Murky.")]))
    chain = (
        ColQwenLangChainRetriever(index, k=2)
        | RunnableLambda(
            lambda documents: [HumanMessage(content=["How turbid?", *content_blocks(documents, max_pixels=250_000)])]
        )
        | model
    )
    assert chain.invoke("turbidity of the harbour basin").content == "Murky."
    ((message,),) = model._sent
    kinds = [(block["type"], block.get("text")) for block in message.content_blocks]
    assert kinds == [
        ("text", "How turbid?"),
        ("text", "harbour.pdf, page 2"),
        ("image", None),
        ("text", "harbour.pdf, page 1"),
        ("image", None),
    ]
    picture: Any = message.content_blocks[2]
    assert picture["mime_type"] == "image/jpeg"
    with Image.open(io.BytesIO(base64.b64decode(picture["base64"]))) as opened:
        assert 240_000 < opened.width * opened.height <= 250_000
    sent = repr([block for block in message.content_blocks if block["type"] == "text"])
    assert "/" not in sent.replace("\\n", "")
    assert convert_to_openai_image_block(picture)["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")


def test_pages_without_images_and_documents_of_others_are_shown_as_text() -> None:
    others = [
        Document("We measured turbidity.", metadata={"source": "notes.txt"}),
        Document("And salinity.", metadata={"score": 0.5}),
    ]
    shown = [(block["type"], block["text"]) for block in content_blocks(others)]
    assert shown == [("text", "notes.txt\nWe measured turbidity."), ("text", "And salinity.")]
    with pytest.raises(InvalidOptionError, match="max_pixels"):
        content_blocks(others, max_pixels=0)


def test_image_that_went_after_its_page_was_found_is_named(tmp_path: Path) -> None:
    gone = Document("", id="p", metadata={"source": "r.pdf, page iv", "image_path": str(tmp_path / "gone.jpg")})
    with pytest.raises(DocumentNotFoundError, match=r"The image of r.pdf, page iv is gone"):
        content_blocks([gone])


def test_retriever_tool_sends_a_model_the_pages_text_only(index: ColQwenIndex) -> None:
    tool = create_retriever_tool(ColQwenLangChainRetriever(index, k=1), "pages", "Find pages.")
    assert tool.invoke({"query": "depth of the canal"}).strip() == "Depth of the canal"


@pytest.mark.slow
def test_without_the_extra_the_name_says_what_installs_it() -> None:
    code = """
import sys
sys.modules["langchain_core"] = None
from llama_index_colqwen import *
try:
    from llama_index_colqwen import ColQwenLangChainRetriever
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingDependencyError")
    assert "pip install 'llama-index-colqwen[langchain]'" in done.stdout
