from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, LLMMetadata, TextBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.mock import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.tools import ToolOutput
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from PIL import Image
from pydantic import PrivateAttr

from llama_index_colqwen import ColQwenIndex, InvalidOptionError, PageSearchTool, PDFPageReader, QueryError
from tests.documents import write_text_pdf

# LlamaIndex's agents look at all their attributes when they are made, pydantic's deprecated ones too.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")

QUESTION = "How turbid is the harbour?"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ColQwenIndex]:
    folder = tmp_path_factory.mktemp("search-tool")
    pdf = write_text_pdf(folder / "report.pdf", "Height of the quay", "Turbidity of the harbour", "Salt in the harbour")
    documents = PDFPageReader(image_dir=folder / "pages", ocr="never").load_data(pdf)
    made = ColQwenIndex.from_documents(documents, uri=folder / "x.db", show_progress=False)
    yield made
    made.close()


class CallingLLM(MockLLM):
    """Calls the tool with its questions, one a turn, then answers; keeps what it was sent."""

    _questions: list[str] = PrivateAttr()
    _sent: list[list[ChatMessage]] = PrivateAttr(default_factory=list)
    _tools: list[Any] = PrivateAttr(default_factory=list)

    def __init__(self, *questions: str) -> None:
        super().__init__(max_tokens=None, is_chat_model=True)
        self._questions = list(questions)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=100_000, is_chat_model=True, is_function_calling_model=True)

    async def achat_with_tools(self, tools: Any, chat_history: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:  # noqa: ANN401
        self._sent.append(list(chat_history))
        self._tools = list(tools)
        return ChatResponse(message=ChatMessage(role="assistant", content="Murky."))

    def get_tool_calls_from_response(self, response: ChatResponse, **kwargs: Any) -> list[ToolSelection]:  # noqa: ANN401
        if not self._questions:
            return []
        question = self._questions.pop(0)
        return [ToolSelection(tool_id="1", tool_name="search_pages", tool_kwargs={"question": question})]

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:  # noqa: ANN401
        """Answer in the words of a ReAct agent."""
        self._sent.append(list(messages))
        words = "Thought: I know.\nAnswer: Murky."
        if self._questions:
            arguments = json.dumps({"question": self._questions.pop(0)})
            words = f"Thought: I look.\nAction: search_pages\nAction Input: {arguments}"
        return ChatResponse(message=ChatMessage(role="assistant", content=words))


class Finds(BaseRetriever):
    """Finds what it was given."""

    def __init__(self, hits: list[NodeWithScore]) -> None:
        self._hits = hits
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._hits


def sizes(blocks: Sequence[Any]) -> list[int]:
    found = []
    for block in blocks:
        if isinstance(block, ImageBlock):
            image: Any = block.resolve_image()
            with Image.open(image) as opened:
                found.append(opened.width * opened.height)
    return found


def words(blocks: Sequence[Any]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, TextBlock)]


async def test_pages_are_captions_texts_and_pictures_side_by_side(index: ColQwenIndex) -> None:
    tool = PageSearchTool(index.as_retriever(similarity_top_k=2), max_pixels=200_000)
    output = tool(QUESTION)
    assert words(output.blocks) == [
        "report.pdf, page 2\nTurbidity of the harbour",
        "report.pdf, page 3\nSalt in the harbour",
    ]
    assert [type(block) for block in output.blocks] == [TextBlock, ImageBlock] * 2
    assert all(190_000 < pixels <= 200_000 for pixels in sizes(output.blocks))
    assert output.content == "\n".join(words(output.blocks))
    assert [hit.metadata["page_number"] for hit in output.raw_output] == [2, 3]
    assert output.raw_input == {"question": QUESTION}
    assert (await tool.acall(QUESTION)).blocks == output.blocks


@pytest.mark.parametrize("multimodal", [True, False])
async def test_an_agent_sees_the_pages_and_nothing_of_this_machine(index: ColQwenIndex, multimodal: bool) -> None:
    llm = CallingLLM(QUESTION)
    tool = PageSearchTool(index.as_retriever(similarity_top_k=2), multimodal=multimodal)
    agent = FunctionAgent(tools=[tool], llm=llm, streaming=False)
    handler = agent.run("How turbid is it?")
    results = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
    assert str(await handler) == "Murky."
    told = llm._sent[-1][-1]
    assert told.role == "tool"
    assert words(told.blocks)[0] == "report.pdf, page 2\nTurbidity of the harbour"
    assert len(sizes(told.blocks)) == (2 if multimodal else 0)
    sent = "".join(words([block for message in llm._sent[-1] for block in message.blocks]))
    assert nothing_internal(sent)
    assert all(block.path is None and block.url is None for block in told.blocks if isinstance(block, ImageBlock))
    assert [hit.metadata["page_number"] for hit in results[0].tool_output.raw_output] == [2, 3]
    (offered,) = llm._tools
    parameters = offered.metadata.to_openai_tool()["function"]["parameters"]
    assert parameters["required"] == ["question"]


def nothing_internal(text: str) -> bool:
    return not any(sign in text for sign in ("/", "sha256", ".jpg", "word_boxes", "-p0000"))


@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")  # by the agent
async def test_a_react_agent_is_told_captions_and_texts(index: ColQwenIndex) -> None:
    llm = CallingLLM(QUESTION)
    tool = PageSearchTool(index.as_retriever(similarity_top_k=1))
    agent = ReActAgent(tools=[tool], llm=llm, streaming=False)
    assert str(await agent.run("How turbid is it?")) == "Murky."
    said = llm._sent[-1][-1].content or ""
    assert said == "Observation: report.pdf, page 2\nTurbidity of the harbour"


async def test_a_question_that_is_empty_or_finds_nothing_is_told_to_the_model(index: ColQwenIndex) -> None:
    llm = CallingLLM(" ", QUESTION)
    agent = AgentWorkflow.from_tools_or_functions([PageSearchTool(index.as_retriever(similarity_top_k=1))], llm=llm)
    agent.agents["Agent"].streaming = False
    assert str(await agent.run("How turbid is it?")) == "Murky."
    told = [message.content for message in llm._sent[-1] if message.role == "tool"]
    assert told == ["The query is empty: ask for something in words.", "report.pdf, page 2\nTurbidity of the harbour"]
    nothing = MetadataFilters(filters=[MetadataFilter(key="file_name", value="other.pdf")])
    found = PageSearchTool(index.as_retriever(filters=nothing)).call(QUESTION)
    assert (found.content, found.raw_output) == ("No page was found.", [])


async def test_an_agents_memory_has_the_pictures(index: ColQwenIndex) -> None:
    llm = CallingLLM(QUESTION)
    agent = FunctionAgent(tools=[PageSearchTool(index.as_retriever(similarity_top_k=1))], llm=llm, streaming=False)
    memory = ChatMemoryBuffer.from_defaults(token_limit=10_000)
    await agent.run("How turbid is it?", memory=memory)
    await agent.run("And is that much?", memory=memory)
    pictures = [block for message in llm._sent[-1] for block in message.blocks if isinstance(block, ImageBlock)]
    assert len(pictures) == 1
    image: Any = pictures[0].resolve_image()
    with Image.open(image) as opened:
        assert opened.format == "JPEG"


def test_long_texts_are_cut_beside_a_picture_and_whole_without(index: ColQwenIndex) -> None:
    hit = index.as_retriever(similarity_top_k=1).retrieve(QUESTION)[0]
    hit.node.set_content("many words " * 400)  # 4,400 characters

    retriever = Finds([hit])
    (text,) = words(PageSearchTool(retriever).call(QUESTION).blocks)
    assert len(text) < 2_050
    assert text.endswith("many ...")
    (text,) = words(PageSearchTool(retriever, multimodal=False).call(QUESTION).blocks)
    assert text.endswith("many words")
    assert len(text) > 4_000


def test_image_that_cannot_be_read_leaves_the_text(
    index: ColQwenIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(base64.b64decode("/9j/") + b"and then nothing")
    hit: Any = index.as_retriever(similarity_top_k=1).retrieve(QUESTION)[0]
    hit.node.image_path = str(broken)

    output: ToolOutput = PageSearchTool(Finds([hit])).call(QUESTION)
    assert words(output.blocks) == ["report.pdf, page 2\nTurbidity of the harbour"]
    assert len(output.blocks) == 1
    assert "An agent is given a page as text" in caplog.text


def test_number_of_pixels_that_is_none_is_refused(index: ColQwenIndex) -> None:
    with pytest.raises(InvalidOptionError, match="max_pixels"):
        PageSearchTool(index.as_retriever(), max_pixels=0)
    with pytest.raises(QueryError):
        PageSearchTool(index.as_retriever()).call("")
