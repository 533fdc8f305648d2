"""`colqwen doctor`: this machine -> what works on it, and the line that fixes what does not.

Tries things for real where that is quick.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Optional

import typer

from llama_index_colqwen.cli.console import print_json, stdout
from llama_index_colqwen.cli.options import AsJson, Token

__all__ = ["Finding", "doctor", "examine"]


def doctor(
    uri: Annotated[Optional[str], typer.Option(help="A Milvus server to try as well.")] = None,  # noqa: UP045
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Try what works on this machine, and print the line that fixes the rest."""
    from rich.markup import escape

    findings = []
    for finding in examine(uri, token):
        findings.append(finding)
        if as_json:
            continue
        mark = "[green]works[/]" if finding.works else "[red]broken[/]" if finding.required else "[yellow]absent[/]"
        stdout().print(f"{mark}  {escape(finding.what)}: {escape(finding.detail)}")
        if finding.fix:
            stdout().print(f"        fix it with: {escape(finding.fix)}")
    if as_json:
        print_json([asdict(finding) for finding in findings])
    if any(finding.required and not finding.works for finding in findings):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        what: Such as "Extra [ocr]".
        works: Whether it does.
        detail: Versions, or what went wrong.
        fix: The line to run, or what to do; empty where nothing is needed.
        required: Whether the package cannot do its main job without it.
    """

    what: str
    works: bool
    detail: str
    fix: str = ""
    required: bool = False


def examine(uri: str | None = None, token: str | None = None) -> Iterator[Finding]:
    """Try everything, one after the other; some take seconds.

    Args:
        uri: A Milvus to try besides Milvus Lite.
        token: Its token.
    """
    yield Finding("Python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield _try("Reading PDFs", _draw_page, "pip install --force-reinstall pypdfium2 pillow", required=True)
    yield _try("Embedder 'lexical'", _embed_words, "pip install --force-reinstall wordfreq PyStemmer", required=True)
    yield _try("Milvus Lite", _store_page, "pip install --force-reinstall milvus-lite pymilvus", required=True)
    if uri is not None:
        yield _try(f"Milvus at {uri}", lambda: _reach(uri, token), "start the server, or check uri and token")
    yield _extra("ask", "llama-index-llms-openai-like")
    yield _extra("ocr", "rapidocr", "onnxruntime")
    yield _extra("poppler", "pdf2image")
    yield _poppler_programs()
    yield _libreoffice()
    yield _extra("heic", "pillow-heif")
    yield _extra("colqwen", "torch", "torchvision", "transformers", "colpali-engine")
    yield _extra("sentence-transformers", "sentence-transformers")
    yield _extra("evaluate", "mteb", "pytrec-eval-terrier")
    yield _extra("langchain", "langchain-core")
    yield _extra("mcp", "mcp")
    yield _extra("ray", "ray")
    yield _extra("server", "fastapi", "fastapi-offline", "prometheus-client")
    yield _extra("ui", "starlette", "uvicorn")
    if find_spec("torch") is not None:
        yield _try("Devices", _devices, "reinstall torch and torchvision together: pip install -U torch torchvision")


def _try(what: str, attempt: Callable[[], str], fix: str, *, required: bool = False) -> Finding:
    try:
        return Finding(what, True, attempt(), required=required)
    except Exception as error:  # the point is to report whatever is wrong, of any kind
        return Finding(what, False, f"{type(error).__name__}: {error}", fix, required)


def _version(package: str) -> str:
    from importlib.metadata import version  # not needed by other commands, which start without it

    return f"{package} {version(package)}"


def _draw_page() -> str:
    import pypdfium2

    pdf = pypdfium2.PdfDocument.new()
    pdf.new_page(100, 100)
    pdf[0].render().to_pil()
    pdf.close()
    return _version("pypdfium2")


def _embed_words() -> str:
    from llama_index_colqwen.embedders.lexical import LexicalEmbedder

    LexicalEmbedder().embed_queries(["does it work?"])
    return "words of the text layer and of OCR; no weights needed"


def _store_page() -> str:
    import numpy as np

    from llama_index_colqwen import ColQwenError, EmbedderFingerprint, MilvusPageStore, Page

    with tempfile.TemporaryDirectory() as folder, MilvusPageStore(Path(folder) / "doctor.db") as store:
        store.open(EmbedderFingerprint("doctor", "1", 2))
        store.add([Page("page", "document", "file", 1, "text", content_hash="hash")], [np.eye(2, dtype=np.float32)])
        if store.count() != 1 or not list(store.candidates(np.ones((1, 2), dtype=np.float32))):
            raise ColQwenError("a page that was stored is not found again")
    return f"{_version('milvus-lite')}, {_version('pymilvus')}"


def _reach(uri: str, token: str | None) -> str:
    from llama_index_colqwen.store.connection import MilvusConnection

    connection = MilvusConnection(uri, token, "doctor")
    try:
        with connection.errors("list"):
            return f"{len(connection.client.list_collections())} collections"
    finally:
        connection.close()


def _extra(name: str, *packages: str) -> Finding:
    missing, found = [], []
    for package in packages:
        try:
            found.append(_version(package))
        except ModuleNotFoundError:  # PackageNotFoundError
            missing.append(package)
    if missing:
        install = f"pip install 'llama-index-colqwen[{name}]'"
        return Finding(f"Extra [{name}]", False, f"not installed: {', '.join(missing)}", install)
    return Finding(f"Extra [{name}]", True, ", ".join(found))


def _poppler_programs() -> Finding:
    path = shutil.which("pdftoppm")
    if path:
        return Finding("Poppler's programs", True, path)
    return Finding("Poppler's programs", False, "pdftoppm is not on the PATH", "apt-get install poppler-utils")


def _libreoffice() -> Finding:
    from llama_index_colqwen.reading.office import INSTALL_CONVERTER, find_converter

    path = find_converter()
    if path:
        return Finding("LibreOffice, for office documents", True, path)
    return Finding("LibreOffice, for office documents", False, "soffice is not on the PATH", INSTALL_CONVERTER)


def _devices() -> str:
    from llama_index_colqwen.embedders.devices import available_devices, require_torch

    require_torch("colqwen")
    return ", ".join(available_devices())
