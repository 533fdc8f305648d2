"""Routes -> what the page in a browser is made of, and what it asks for.

Knows nothing of addresses, processes or signals, nor of options of the command line.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from llama_index.core.schema import MetadataMode, NodeWithScore
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from llama_index_colqwen.asking import ChatModel
from llama_index_colqwen.errors import (
    CollectionNotFoundError,
    ColQwenError,
    DocumentError,
    DocumentNotFoundError,
    InvalidOptionError,
    MissingDependencyError,
    QueryError,
    StoreError,
)
from llama_index_colqwen.explain.explanation import Explanation
from llama_index_colqwen.explain.similarities import NO_WORD
from llama_index_colqwen.nodes import caption
from llama_index_colqwen.pages import PageImage
from llama_index_colqwen.reading.rendering import SUPPORTED_SUFFIXES
from llama_index_colqwen.retriever import Mode
from llama_index_colqwen.shared_index import SharedIndex, without_folders
from llama_index_colqwen.snippet import snippet
from llama_index_colqwen.web.guard import Guard, refusal, sign_in
from llama_index_colqwen.web.pictures import Pictures
from llama_index_colqwen.web.uploads import Uploads, safe_name

try:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
except ImportError as error:
    raise MissingDependencyError("The page needs Starlette", "ui") from error

__all__ = ["MAX_UPLOAD_BYTES", "create_app"]

MAX_UPLOAD_BYTES = 256 << 20

_STATIC = Path(__file__).parent / "static"
_MOST_HITS = 60
_QUESTION_CHARACTERS = 2_000
_BODY_BYTES = 64 << 10
_SILENT_S = 60.0  # of someone who sends a file
_WRONG_TOKEN_S = 0.5  # so long a guess takes
_SNIPPET_CHARACTERS = 200


def create_app(
    shared: SharedIndex,
    uploads: Uploads,
    *,
    mode: Mode = "visual",
    chat_model: ChatModel | None = None,
    shown_pages: int = 3,
    token: str | None = None,
    max_upload_bytes: int = MAX_UPLOAD_BYTES,
) -> Starlette:
    """Make the page's ASGI application; when it ends, it ends the uploads and closes the index.

    Args:
        shared: The index; there need not be one yet.
        uploads: Takes files.
        mode: By what pages are ranked, as `ColQwenRetriever` takes it.
        chat_model: Answers questions; without one, nothing about answers is shown.
        shown_pages: How many pages it is shown.
        token: What is asked for before anything is shown. Without one, only requests to this machine's own name are
            answered, so listen on no address that others can reach.
        max_upload_bytes: How large a file may be.

    Raises:
        MissingDependencyError: If the extra `[ui]` is not installed.
    """
    page = _Page(shared, uploads, mode, chat_model, shown_pages, token, max_upload_bytes)

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(uploads.close)
        await asyncio.to_thread(shared.close)

    def say(request: Request, error: Exception) -> Response:
        assert isinstance(error, ColQwenError)
        return refusal(without_folders(error, shared.store), _status(error))

    def forget(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    routes = [
        Route("/api/session", page.sign_in, methods=["POST"]),
        Route("/api/state", page.state),
        Route("/api/search", page.search),
        Route("/api/page", page.explain),
        Route("/api/picture", page.picture),
        Route("/api/thumbnail", page.thumbnail),
        Route("/api/uploads", page.take, methods=["POST"]),
        Route("/api/uploads", page.list_uploads),
        Route("/api/answer", page.answer, methods=["POST"]),
        Mount("/", StaticFiles(directory=_STATIC, html=True)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={ColQwenError: say, ClientDisconnect: forget},
        lifespan=running,
    )


class _Page:
    """What the routes do; those that are no coroutines run in threads."""

    def __init__(
        self,
        shared: SharedIndex,
        uploads: Uploads,
        mode: Mode,
        chat_model: ChatModel | None,
        shown_pages: int,
        token: str | None,
        max_upload_bytes: int,
    ) -> None:
        self._shared, self._uploads, self._mode = shared, uploads, mode
        self._chat_model, self._shown_pages = chat_model, shown_pages
        self._token, self._max_upload_bytes = token, max_upload_bytes
        self._pictures = Pictures(shared)

    async def sign_in(self, request: Request) -> Response:
        sent = (await _object(request)).get("token")
        done = sign_in(request, self._token, sent) if isinstance(sent, str) else None
        if done is None:
            await asyncio.sleep(_WRONG_TOKEN_S)
            return refusal("The token is wrong.", HTTPStatus.UNAUTHORIZED)
        return done

    def state(self, request: Request) -> Response:
        try:
            with self._shared.use() as index:
                stored = index.store.documents()
        except CollectionNotFoundError:
            stored = []
        pages: dict[str, int] = {}
        for document in stored:
            pages[document.file_name] = pages.get(document.file_name, 0) + document.pages
        return _json(
            {
                "documents": [{"file_name": name, "pages": number} for name, number in pages.items()],
                "chat_model": self._chat_model.name if self._chat_model else None,
                "types": sorted(SUPPORTED_SUFFIXES),
                "max_upload_bytes": self._max_upload_bytes,
            }
        )

    def search(self, request: Request) -> Response:
        question, began = _question(request.query_params.get("q")), time.perf_counter()
        most = min(_number(request, "k", 12), _MOST_HITS)
        try:
            with self._shared.use() as index:
                retriever = index.as_retriever(
                    similarity_top_k=most,
                    filters=_only(request.query_params.getlist("file")),
                    score="normalized",
                    mode=self._mode,
                )
                hits = retriever.retrieve(question)
                language = str(index.embedder.fingerprint.options.get("language") or "en")
        except CollectionNotFoundError:
            hits, language = [], "en"
        return _json(
            {
                "hits": [_hit(question, hit, language) for hit in hits],
                "more": len(hits) == most < _MOST_HITS,
                "seconds": round(time.perf_counter() - began, 3),
            }
        )

    def explain(self, request: Request) -> Response:
        page_id = request.query_params.get("page", "")
        if question := request.query_params.get("q", "").strip():
            return _json(_explained(self._pictures.explanation(page_id, _question(question))))
        page = self._pictures.page(page_id)
        return _json({"title": f"{page.file_name}, page {page.page_number}", "tokens": [], "regions": [], "notes": []})

    def picture(self, request: Request) -> Response:
        page_id, token = request.query_params.get("page", ""), request.query_params.get("token", "")
        question = request.query_params.get("q", "").strip()
        if token == "none" or not question:
            return _image(self._pictures.plain(page_id))
        chosen = None if token in ("", "all") else _number(request, "token", 0, least=0)
        return _image(self._pictures.marked(page_id, _question(question), chosen))

    def thumbnail(self, request: Request) -> Response:
        page_id, version = request.query_params.get("page", ""), request.query_params.get("v", "")[:64]
        return _image(self._pictures.thumbnail(page_id, version))

    async def take(self, request: Request) -> Response:
        name = safe_name(request.query_params.get("name", ""))
        too_large = refusal(
            f"{name} is too large: files of {self._max_upload_bytes >> 20} MB are taken at most. "
            "`colqwen index` in a shell takes any.",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
        if int(request.headers.get("content-length") or 0) > self._max_upload_bytes:
            return too_large
        part = self._uploads.new_part()
        try:
            if not await _write(request, part, self._max_upload_bytes):
                return too_large
            instead = request.query_params.get("instead")
            upload = await asyncio.to_thread(self._uploads.add, part, name, instead)
            if upload is None:
                return refusal(f"There is another {name} already.", HTTPStatus.CONFLICT, taken=True)
            return _json(upload.to_dict(), HTTPStatus.ACCEPTED)
        finally:
            part.unlink(missing_ok=True)  # what is in the line was moved

    def list_uploads(self, request: Request) -> Response:
        return _json({"uploads": [upload.to_dict() for upload in self._uploads.listed()]})

    async def answer(self, request: Request) -> Response:
        asked = await _object(request)
        if self._chat_model is None:
            raise InvalidOptionError("There is no chat model: start `colqwen ui` with --llm.")
        files = asked.get("files") or []
        if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
            raise InvalidOptionError("files is a list of names.")
        hits, said = await asyncio.to_thread(self._ask, self._chat_model, _question(asked.get("q")), files)
        return StreamingResponse(self._lines(hits, said), media_type="application/x-ndjson")

    def _ask(
        self, model: ChatModel, question: str, files: Sequence[str]
    ) -> tuple[Sequence[NodeWithScore], Iterator[str]]:
        with self._shared.use() as index:
            return model.answer(index, question, self._shown_pages, _only(files), mode=self._mode)

    def _lines(self, hits: Sequence[NodeWithScore], said: Iterator[str]) -> Iterator[str]:
        """Write an answer as it comes, a JSON object a line; what goes wrong meanwhile is the last one."""
        shown = [{"page_id": hit.node_id, "title": caption(hit.node), "v": _version(hit)} for hit in hits]
        yield json.dumps({"pages": shown}) + "\n"
        try:
            for piece in said:
                yield json.dumps({"piece": piece}) + "\n"
        except ColQwenError as error:
            yield json.dumps({"error": without_folders(error, self._shared.store)}) + "\n"


def _hit(question: str, hit: NodeWithScore, language: str) -> dict[str, Any]:
    piece = snippet(question, hit.node.get_content(MetadataMode.NONE), language, _SNIPPET_CHARACTERS)
    return {
        "page_id": hit.node_id,
        "file_name": str(hit.metadata.get("file_name") or hit.node_id),
        "page": str(hit.metadata.get("page_label") or hit.metadata.get("page_number") or ""),
        "score": round(min(max(hit.get_score(), 0.0), 1.0), 3),
        "snippet": piece.text,
        "matches": piece.matches,
        "v": _version(hit),
    }


def _version(hit: NodeWithScore) -> str:
    """Return what changes with a page's image, for its address."""
    return str(hit.metadata.get("page_sha256") or "")[:16]


def _explained(found: Explanation) -> dict[str, Any]:
    most = max((match.share for match in found.tokens), default=0.0)
    notes = list(found.notes)
    if found.image_size is None:
        notes.append(f"The picture of {found.title} is gone: index its file again.")
    return {
        "title": found.title,
        "notes": notes,
        # A model's padding is left out: there may be a dozen of it.
        "tokens": [
            {
                "number": number,
                "text": match.text,
                "share": round(max(match.share, 0.0) / most, 3) if most > 0 else 0.0,
                "matches": match.is_word and match.is_clear,
            }
            for number, match in enumerate(found.tokens)
            if match.text != NO_WORD
        ],
        "regions": [
            {
                "box": [round(side, 4) for side in region.scaled(1, 1)],
                "share": round(region.share, 3),
                "tokens": list(dict.fromkeys(region.tokens)),
                "text": region.text,
            }
            for region in found.regions()
        ],
    }


def _status(error: ColQwenError) -> int:
    if isinstance(error, (DocumentNotFoundError, CollectionNotFoundError)):
        return HTTPStatus.NOT_FOUND
    if isinstance(error, (QueryError, InvalidOptionError, DocumentError)):
        return HTTPStatus.BAD_REQUEST
    return HTTPStatus.SERVICE_UNAVAILABLE if isinstance(error, StoreError) else HTTPStatus.INTERNAL_SERVER_ERROR


def _question(text: object) -> str:
    """Check a question."""
    if not isinstance(text, str) or not text.strip():
        raise QueryError("The question is empty: say in words what you look for.")
    if len(text) > _QUESTION_CHARACTERS:
        raise QueryError(f"The question is too long: {len(text)} characters, of {_QUESTION_CHARACTERS} at most.")
    return text.strip()


def _number(request: Request, name: str, default: int, least: int = 1) -> int:
    text = request.query_params.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and int(text) >= least):
        raise InvalidOptionError(f"{name} is a whole number, at least {least}.")
    return int(text)


def _only(files: Sequence[str]) -> MetadataFilters | None:
    if not files:
        return None
    return MetadataFilters(filters=[MetadataFilter(key="file_name", value=list(files), operator=FilterOperator.IN)])


async def _object(request: Request) -> dict[str, Any]:
    """Read a JSON object that was sent."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY_BYTES:
            raise InvalidOptionError(f"A request has {_BODY_BYTES >> 10} kB at most.")
    try:
        sent = json.loads(body)
    except ValueError:
        sent = None
    if not isinstance(sent, dict):
        raise InvalidOptionError("A request's body is a JSON object.")
    return sent


async def _write(request: Request, part: Path, most: int) -> bool:
    """Write a body to a file; say whether it is not too large."""
    written, stream = 0, request.stream()
    with part.open("wb") as file:
        while True:
            try:
                chunk = await asyncio.wait_for(anext(stream), _SILENT_S)
            except StopAsyncIteration:
                return True
            except asyncio.TimeoutError:
                raise ClientDisconnect from None
            written += len(chunk)
            if written > most:
                return False
            await asyncio.to_thread(file.write, chunk)


def _json(value: object, status: int = HTTPStatus.OK) -> Response:
    return Response(json.dumps(value), status, media_type="application/json")


def _image(image: PageImage) -> Response:
    return Response(image.data, media_type=image.mimetype, headers={"Cache-Control": "private, max-age=600"})
