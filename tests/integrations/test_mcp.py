from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("mcp", reason="the [mcp] extra is not installed")
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from llama_index_colqwen import ColQwenIndex, InvalidOptionError, LexicalEmbedder, MilvusPageStore, PDFPageReader
from llama_index_colqwen.integrations import mcp as integration
from llama_index_colqwen.integrations.mcp import create_server
from tests.conftest import at_most
from tests.documents import write_text_pdf


def make_index(folder: Path) -> Path:
    """Index two documents, one with roman page labels."""
    import pikepdf

    write_text_pdf(folder / "report.pdf", "Height of the quay", "Turbidity of the harbour basin", "Salinity")
    with pikepdf.open(folder / "report.pdf", allow_overwriting_input=True) as pdf:
        pdf.Root.PageLabels = pikepdf.Dictionary(Nums=[0, pikepdf.Dictionary(S=pikepdf.Name.r)])
        pdf.save()
    write_text_pdf(folder / "canal.pdf", "Depth of the canal")
    documents = PDFPageReader(image_dir=folder / "pages", ocr="never").load_data(
        [folder / "report.pdf", folder / "canal.pdf"]
    )
    with ColQwenIndex.from_documents(documents, uri=folder / "x.db", show_progress=False):
        return folder / "x.db"


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("mcp"))


@pytest.fixture
def client(db: Path) -> Iterator[Client]:
    with MilvusPageStore(db) as store:
        yield Client(create_server(store, max_pixels=250_000))


def said(result: Any) -> str:  # noqa: ANN401
    return "\n".join(block.text for block in result.content if block.type == "text")


def nothing_local(text: str, db: Path) -> bool:
    return not any(sign in text for sign in (str(db.parent), "/tmp", ".jpg", "page_sha256", "word_boxes"))


async def test_tools_are_described(client: Client) -> None:
    async with client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"search_pages", "get_page", "list_documents"}
    assert tools["search_pages"].input_schema["required"] == ["question"]
    assert tools["search_pages"].input_schema["properties"]["top_k"]["default"] == 5
    assert all(tool.annotations is not None and tool.annotations.read_only_hint for tool in tools.values())


async def test_search_finds_pages_in_words(client: Client, db: Path) -> None:
    async with client:
        result = await client.call_tool("search_pages", {"question": "How turbid is the harbour?", "top_k": 2})
        (first, _) = result.structured_content["result"]
        assert (first["file_name"], first["page"]) == ("report.pdf", "ii")
        assert first["excerpt"].strip() == "Turbidity of the harbour basin"
        assert first["page_id"].endswith("-p00002")
        assert set(first) == {"page_id", "file_name", "page", "score", "excerpt"}
        assert json.loads(result.content[0].text) == first  # type: ignore[union-attr]
        assert nothing_local(said(result), db)
        result = await client.call_tool("search_pages", {"question": "harbour", "file_name": "canal.pdf"})
        assert [page["file_name"] for page in result.structured_content["result"]] == ["canal.pdf"]


async def test_pages_are_ranked_by_what_is_asked_for(db: Path) -> None:
    with ColQwenIndex.from_existing(db) as index:
        (best,) = index.as_retriever(similarity_top_k=1, mode="text").retrieve("harbour")
    with MilvusPageStore(db) as store:
        async with Client(create_server(store, mode="text")) as client:
            result = await client.call_tool("search_pages", {"question": "harbour", "top_k": 1})
    assert result.structured_content["result"][0]["score"] == round(best.get_score(), 4) != 1


async def test_get_page_shows_picture_and_text_by_id_label_and_number(client: Client, db: Path) -> None:
    async with client:
        found = await client.call_tool("search_pages", {"question": "turbidity", "top_k": 1})
        page_id = found.structured_content["result"][0]["page_id"]
        arguments: dict[str, Any]
        for arguments in (
            {"page_id": page_id},
            {"file_name": "report.pdf", "page": "ii"},
            {"file_name": "report.pdf", "page": "2"},
            {"file_name": "report.pdf", "page": 2},
        ):
            words, picture = (await client.call_tool("get_page", arguments)).content
            assert words.type == "text"
            assert words.text == "report.pdf, page ii\nTurbidity of the harbour basin"
            assert picture.type == "image"
            assert picture.mime_type == "image/jpeg"
            with Image.open(io.BytesIO(base64.b64decode(picture.data))) as opened:
                assert 240_000 < opened.width * opened.height <= 250_000


async def test_documents_are_listed_and_looked_for_by_name(client: Client) -> None:
    async with client:
        listed = (await client.call_tool("list_documents", {})).structured_content
        assert listed == {
            "total": 2,
            "documents": [{"file_name": "canal.pdf", "pages": 1}, {"file_name": "report.pdf", "pages": 3}],
        }
        listed = (await client.call_tool("list_documents", {"name_contains": "REP"})).structured_content
        assert listed == {"total": 1, "documents": [{"file_name": "report.pdf", "pages": 3}]}


@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        ("search_pages", {"question": " "}, "The query is empty"),
        ("search_pages", {"question": "x", "top_k": 0}, "greater than or equal to 1"),
        ("search_pages", {"question": "x", "file_name": "no.pdf"}, "There is no file 'no.pdf': list_documents says"),
        ("get_page", {"page_id": "nope"}, "There is no page 'nope': search_pages says"),
        ("get_page", {"file_name": "report.pdf"}, "Give a page_id, or a file_name and a page."),
        ("get_page", {"file_name": "report.pdf", "page": "9"}, "report.pdf has no page '9': it has 3 pages."),
        ("get_page", {"file_name": "no.pdf", "page": "1"}, "There is no file 'no.pdf'"),
    ],
)
async def test_mistakes_are_told_to_the_model(
    client: Client, tool: str, arguments: dict[str, Any], sentence: str
) -> None:
    async with client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert sentence in said(result)


async def test_an_index_that_comes_changes_and_goes_is_followed(tmp_path: Path, db: Path) -> None:
    with MilvusPageStore(tmp_path / "x.db") as store:
        client = Client(create_server(store))
        async with client:
            result = await client.call_tool("list_documents", {})
            assert result.is_error
            assert "There is no collection 'pages' in x.db: nothing has been indexed there." in said(result)
            assert not (tmp_path / "x.db").exists()
            make_index(tmp_path)
            store.close()  # as it is after some seconds
            assert said(await client.call_tool("search_pages", {"question": "canal", "top_k": 1}))
            documents = PDFPageReader(ocr="never").load_data(tmp_path / "canal.pdf")
            german = LexicalEmbedder("de")
            ColQwenIndex.from_documents(
                documents, german, uri=tmp_path / "x.db", overwrite=True, show_progress=False
            ).close()
            result = await client.call_tool("search_pages", {"question": "canal"})
            assert [page["file_name"] for page in result.structured_content["result"]] == ["canal.pdf"]


async def test_picture_that_is_gone_leaves_the_text(tmp_path: Path) -> None:
    db = make_index(tmp_path)
    shutil.rmtree(tmp_path / "pages")
    (tmp_path / "canal.pdf").unlink()
    with MilvusPageStore(db) as store:
        async with Client(create_server(store)) as client:
            result = await client.call_tool("get_page", {"file_name": "canal.pdf", "page": 1})
            assert said(result) == "canal.pdf, page 1\nDepth of the canal\n(This page's picture cannot be read.)"
            assert len(result.content) == 1
            drawn_again = await client.call_tool("get_page", {"file_name": "report.pdf", "page": 1})
            assert [block.type for block in drawn_again.content] == ["text", "image"]


async def test_pages_that_share_name_and_number_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_text_pdf(tmp_path / folder / "same.pdf", f"Page of {folder}")
    documents = PDFPageReader(ocr="never").load_data([tmp_path / "a" / "same.pdf", tmp_path / "b" / "same.pdf"])
    ColQwenIndex.from_documents(documents, uri=tmp_path / "x.db", show_progress=False).close()
    with MilvusPageStore(tmp_path / "x.db") as store:
        async with Client(create_server(store)) as client:
            result = await client.call_tool("get_page", {"file_name": "same.pdf", "page": 1})
    assert result.is_error
    assert all(document.node_id in said(result) for document in documents)


def test_the_file_is_free_when_nothing_was_asked_for_some_time(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "_IDLE_SECONDS", 0.2)
    with MilvusPageStore(db) as store:
        shared = integration._Shared(store, None)
        for _ in range(2):
            with shared.use() as index:
                assert index.store.count() == 4
                time.sleep(0.4)
                assert store._connection.is_open  # not while it is asked
            deadline = time.monotonic() + 20
            while store._connection.is_open:
                assert time.monotonic() < deadline, "it stays open"
                time.sleep(0.05)


def test_options_that_make_no_sense_are_refused(db: Path) -> None:
    with pytest.raises(InvalidOptionError, match="top_k"):
        create_server(MilvusPageStore(db), top_k=0)
    with pytest.raises(InvalidOptionError, match="mode"):
        create_server(MilvusPageStore(db), mode="words")  # type: ignore[arg-type]


COMMAND = ["-m", "llama_index_colqwen.cli", "mcp"]


@pytest.mark.slow
async def test_command_serves_a_client_over_standard_input_and_output(db: Path, tmp_path: Path) -> None:
    environment = {name: os.environ[name] for name in ("PYTHONPYCACHEPREFIX", "XDG_CACHE_HOME") if name in os.environ}
    question = "How turbid is the harbour?"
    with ColQwenIndex.from_existing(db) as index:
        (best,) = index.as_retriever(similarity_top_k=1, mode="text").retrieve(question)
    options = ["--uri", str(db), "-k", "1", "--mode", "text"]
    server = StdioServerParameters(command=sys.executable, args=[*COMMAND, *options], env=environment, cwd=tmp_path)
    with (tmp_path / "log").open("w+") as log:
        async with Client(stdio_client(server, errlog=log)) as client:
            with MilvusPageStore(db) as store:
                assert store.count() == 4  # so this process holds the file
                refused = await client.call_tool("list_documents", {})
            assert refused.is_error
            assert "x.db is in use by another process" in said(refused)
            assert nothing_local(said(refused), db)
            found = await client.call_tool("search_pages", {"question": question})
            (page,) = found.structured_content["result"]
            assert (page["page_id"], page["score"]) == (best.node_id, round(best.get_score(), 4))
            shown = await client.call_tool("get_page", {"page_id": page["page_id"]})
            assert [block.type for block in shown.content] == ["text", "image"]
            assert nothing_local(said(found) + said(shown), db)
        log.seek(0)
        assert "Traceback" not in log.read()


@pytest.mark.slow
def test_command_writes_nothing_but_the_protocol_and_ends_with_its_input(db: Path, tmp_path: Path) -> None:
    ask = [
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            },
        },
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {
            "jsonrpc": "2.0",
            "id": 2,
            "method": "tools/call",
            "params": {"name": "search_pages", "arguments": {"question": "harbour"}},
        },
    ]
    with subprocess.Popen(
        [sys.executable, *COMMAND, "--uri", str(db)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        with at_most(120, process):
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("".join(f"{json.dumps(message)}\n" for message in ask))
            process.stdin.flush()
            answers = [json.loads(process.stdout.readline()) for _ in range(2)]
            rest, _ = process.communicate()
    assert [answer["id"] for answer in answers] == [1, 2]
    assert rest == ""
    assert process.returncode == 0


def test_path_that_can_be_none_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    from tests.cli.commands import run

    result = run("mcp", "--uri", tmp_path / "x.sqlite")
    assert result.exit_code == 1
    assert "Error: uri is a path ending in .db" in result.stderr
    assert run("mcp", "--uri", tmp_path / "x.db", "-k", "0").exit_code == 1
    assert list(tmp_path.iterdir()) == []
