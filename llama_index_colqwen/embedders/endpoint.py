"""Page images and queries -> multi-vectors, by a model elsewhere: `colqwen serve`, or a Hugging Face endpoint.

Needs neither torch nor a GPU. Knows nothing of models, Milvus or LlamaIndex.
"""

from __future__ import annotations

import asyncio
import base64
import email.utils
import os
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from pydantic_core import from_json, to_json
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from tqdm.auto import tqdm

from llama_index_colqwen.embedders.base import EmbedderFingerprint, fingerprint_digest
from llama_index_colqwen.endpoint.contract import FINGERPRINT_HEADER, Limits, read_multi_vector
from llama_index_colqwen.errors import (
    DimensionMismatchError,
    EndpointError,
    EndpointUnavailableError,
    InvalidOptionError,
    QueryError,
    UnreadableDocumentError,
)
from llama_index_colqwen.pages import MultiVector, Page, PageVectors
from llama_index_colqwen.pipeline import gather, look_ahead

if TYPE_CHECKING:
    import httpx

__all__ = ["EndpointEmbedder"]

_T = TypeVar("_T")

_QUERIES = 32
_REQUEST_BYTES = 4 * 2**20
"""What a request of several pages has at most; gateways before services often take little more."""
_RETRIED = (429, 502, 503, 504)
_MAX_WAIT_S = 60.0
_CONNECT_S = 10.0
_FAULTS_OF_PAGES = ("InvalidImage", "ImageTooLarge", "BodyTooLarge")
_FAULTS_OF_QUERIES = ("InvalidText", "TextTooLong")


class EndpointEmbedder:
    """Embed pages and queries over HTTP, with the model of a `colqwen serve` or of an `EndpointHandler`.

    Safe for many threads and event loops: all requests are made in one thread of the embedder's own. Requests are tried
    again after connection errors and the answers 429, 502, 503 and 504, with growing pauses or as `Retry-After` says.

    Args:
        url: The service's address, such as "https://gpu.example.com".
        token: Sent as a bearer token; by default what is in the environment variable COLQWEN_TOKEN, if anything.
        fingerprint: What the model is. By default the service is asked; a Hugging Face endpoint cannot say, so there
            it has to be given, and to be true: collections are checked by it.
        batch_size: Pages a request.
        concurrency: Requests under way at a time.
        timeout: Seconds to wait for an answer. (A page takes a minute where the service has no GPU.)
        max_retries: How often a request is tried again.

    Raises:
        InvalidOptionError: If an argument means nothing, or there is no fingerprint.
        EndpointUnavailableError: If the service cannot be reached.
        EndpointError: If it refuses, as over a wrong token.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        fingerprint: EmbedderFingerprint | None = None,
        batch_size: int = 4,
        concurrency: int = 4,
        timeout: float = 600.0,
        max_retries: int = 5,
    ) -> None:
        """Ask the service what its model is; see the class."""
        if batch_size < 1 or concurrency < 1 or timeout <= 0 or max_retries < 0:
            raise InvalidOptionError(
                "batch_size and concurrency are 1 or more, timeout is more than 0, max_retries 0 or more; got "
                f"{batch_size}, {concurrency}, {timeout}, {max_retries}."
            )
        self.url = _checked(url)
        self.batch_size, self.concurrency, self.max_retries = batch_size, concurrency, max_retries
        token = os.environ.get("COLQWEN_TOKEN", "").strip() if token is None else token
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = timeout
        self._limits = Limits(max_body_bytes=2**31)
        self._worker = _Worker()
        self._client: httpx.AsyncClient | None = None
        self._slots: asyncio.Semaphore | None = None
        self._digest: str | None = None
        try:
            if fingerprint is None:
                fingerprint = self._worker.run(self._ask())
                self._digest = fingerprint_digest(fingerprint)
        except BaseException:
            self.close()
            raise
        # Whoever opens a collection that this made reads there whence its vectors come.
        self.fingerprint = replace(fingerprint, location=self.url)
        self.dim = fingerprint.dim

    # ---- pages

    def embed_pages(self, pages: Sequence[Page], show_progress: bool = False) -> list[MultiVector]:
        """Embed page images, several requests at a time.

        Returns:
            For each page `PageVectors`: float32, shape (num_tokens, dim), unit rows, no padding; with the patch grid,
            if the service sends one. They come as float16, within 5e-4 of what the model computed.

        Raises:
            UnreadableDocumentError: If a page's image is gone, or the service cannot decode it.
            EndpointUnavailableError: If the service cannot be reached, or stays busy.
            EndpointError: If it fails, or answers something else.
        """
        return self._worker.run(self._embed_pages(pages, show_progress))

    async def aembed_pages(self, pages: Sequence[Page], show_progress: bool = False) -> list[MultiVector]:
        """As `embed_pages`; when it is cancelled, the service is left alone."""
        return await self._worker.arun(self._embed_pages(pages, show_progress))

    def stream_pages(self, pages: Iterable[Page]) -> Iterator[tuple[Page, MultiVector]]:
        """Embed pages as they come, `concurrency` requests at a time; an error comes after the pages before it.

        Yields:
            Each page with its vectors, as `embed_pages` gives them, in order.
        """
        under_way: list[Future[list[MultiVector]]] = []

        def submit(batch: list[Page]) -> tuple[list[Page], Future[list[MultiVector]]]:
            future = self._worker.submit(self._embed_pages(batch, False))
            under_way.append(future)
            return batch, future

        try:
            requests = (submit(batch) for batch in gather(pages, self.batch_size, first=1))
            for batch, future in look_ahead(requests, self.concurrency):
                yield from zip(batch, future.result(), strict=True)
                under_way.remove(future)
        finally:
            for future in under_way:
                future.cancel()

    # ---- queries

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        """Embed queries: float32, shape (num_tokens, dim), unit rows, no padding.

        Raises:
            QueryError: If a query is blank, or too long for the service.
            EndpointUnavailableError: If the service cannot be reached, or stays busy.
            EndpointError: If it fails, or answers something else.
        """
        return self._worker.run(self._embed_queries(queries))

    async def aembed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        """As `embed_queries`."""
        return await self._worker.arun(self._embed_queries(queries))

    # ---- closing

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        self._worker.run(self._disconnect())
        self._worker.stop()

    def __enter__(self) -> EndpointEmbedder:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    # ---- what runs on the worker's loop

    async def _embed_pages(self, pages: Sequence[Page], show_progress: bool) -> list[MultiVector]:
        with tqdm(total=len(pages), desc="Embedding pages", unit="page", disable=not show_progress) as progress:

            async def embed(batch: list[Page]) -> list[MultiVector]:
                async with self._slot():
                    images = [base64.b64encode(_image(page)).decode("ascii") for page in batch]
                    try:
                        vectors = await self._post("image", images)
                    except _RefusedItemError as refused:
                        raise _page_error(refused, batch) from None
                progress.update(len(batch))
                return [vector if isinstance(vector, PageVectors) else PageVectors(vector) for vector in vectors]

            return await _all(embed(batch) for batch in self._split(pages))

    async def _embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        if not all(isinstance(query, str) and query.strip() for query in queries):
            raise QueryError("The query is empty.")

        async def embed(batch: list[str]) -> list[MultiVector]:
            async with self._slot():
                try:
                    return await self._post("text", batch)
                except _RefusedItemError as refused:
                    raise QueryError(f"{self.url} refuses the query: {refused}") from None

        # Half a letter is none, and no JSON.
        texts = [query.encode("utf-8", "replace").decode("utf-8") for query in queries]
        return await _all(embed(batch) for batch in gather(texts, min(_QUERIES, self._limits.max_items)))

    def _split(self, pages: Sequence[Page]) -> Iterator[list[Page]]:
        """Make requests of pages: so many, and of so many bytes."""
        most_pages = min(self.batch_size, self._limits.max_items)
        most_bytes = min(_REQUEST_BYTES, self._limits.max_body_bytes - 1000)
        batch: list[Page] = []
        size = 0
        for page in pages:
            page_size = 4 * -(-_image_size(page) // 3)
            if batch and (len(batch) == most_pages or size + page_size > most_bytes):
                yield batch
                batch, size = [], 0
            batch.append(page)
            size += page_size
        if batch:
            yield batch

    def _slot(self) -> asyncio.Semaphore:
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.concurrency)
        return self._slots

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            import httpx

            timeout = httpx.Timeout(self._timeout, connect=min(_CONNECT_S, self._timeout))
            self._client = httpx.AsyncClient(headers=self._headers, timeout=timeout)
        return self._client

    async def _disconnect(self) -> None:
        client, self._client, self._slots = self._client, None, None
        if client is not None:
            await client.aclose()

    async def _ask(self) -> EmbedderFingerprint:
        """Ask a service of ours what its model is, and what it takes."""
        response = await self._request("GET", f"{self.url}/info")
        try:
            answer = from_json(response.content)
            fingerprint = EmbedderFingerprint(**answer["fingerprint"])
            limits = {name: answer["limits"][name] for name in Limits.__dataclass_fields__}
            self._limits = Limits(**limits)
        except (ValueError, TypeError, KeyError):
            if response.status_code in (401, 403):
                raise self._refused(response) from None
            raise InvalidOptionError(
                f"{self.url} does not say at /info which model it has (status {response.status_code}). If it is a "
                "Hugging Face endpoint, give fingerprint=EmbedderFingerprint(model, revision, dim); else check the URL."
            ) from None
        return fingerprint

    async def _post(self, kind: str, items: Sequence[str]) -> list[MultiVector]:
        body = to_json(
            {
                "inputs": [],
                kind: items,
                "batch_size": min(len(items), self.batch_size) if kind == "image" else len(items),
                "encoding": "base64-float16",
                "return_scores": False,
            }
        )
        response = await self._request("POST", self.url, content=body)
        answer = self._answer(response)
        digest = response.headers.get(FINGERPRINT_HEADER)
        if self._digest and digest and digest != self._digest:
            raise EndpointError(
                f"{self.url} has another model than when this embedder was made: vectors of two models cannot be "
                "compared. Make a new EndpointEmbedder, and a new collection."
            )
        try:
            vectors = [_unit_rows(read_multi_vector(value)) for value in answer[kind]]
        except (KeyError, TypeError, ValueError) as error:
            raise EndpointError(f"{self.url} answers no multi-vectors under {kind!r}: {error}.") from error
        if len(vectors) != len(items):
            raise EndpointError(f"{self.url} answers {len(vectors)} multi-vectors for {len(items)} of {kind!r}.")
        if wrong := {vector.shape[1] for vector in vectors} - {self.dim}:
            raise DimensionMismatchError(
                f"{self.url} answers vectors of dim {wrong.pop()}, and its fingerprint says {self.dim}."
            )
        return vectors

    async def _request(self, method: str, url: str, content: bytes | None = None) -> httpx.Response:
        """Send a request, again if it is worth it; the answer may be a refusal."""
        attempts = AsyncRetrying(
            stop=stop_after_attempt(1 + self.max_retries),
            wait=_pause,
            retry=retry_if_exception_type(_TransientError),
            reraise=True,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    return await self._try(method, url, content)
        except _TransientError as error:
            tries = f" ({self.max_retries + 1} tries)" if self.max_retries else ""
            raise EndpointUnavailableError(f"{self.url} {error}{tries}: try again later.") from error.__cause__
        raise AssertionError("tenacity returns or raises")

    async def _try(self, method: str, url: str, content: bytes | None) -> httpx.Response:
        import httpx

        headers = {"Content-Type": "application/json", "Accept": "application/json"} if content else {}
        try:
            response = await self._connected().request(method, url, content=content, headers=headers)
        except httpx.ReadTimeout as error:
            # Not tried again: it would take the service's time a second time.
            raise EndpointError(
                f"{self.url} did not answer within {self._timeout:g} s: give a longer timeout, or send less."
            ) from error
        except httpx.TransportError as error:
            raise _TransientError(f"cannot be reached: {error or type(error).__name__}") from error
        if response.status_code in _RETRIED:
            raise _TransientError(
                f"is busy (status {response.status_code})", _retry_after(response.headers.get("retry-after"))
            )
        return response

    def _answer(self, response: httpx.Response) -> Mapping[str, Any]:
        try:
            answer = from_json(response.content)
        except ValueError:
            answer = None
        if response.is_success and isinstance(answer, Mapping) and "error" not in answer:
            return answer
        error = answer.get("error") if isinstance(answer, Mapping) else None
        if isinstance(error, Mapping) and error.get("type") in _FAULTS_OF_PAGES + _FAULTS_OF_QUERIES:
            raise _RefusedItemError(str(error.get("message")), error.get("index"))
        raise self._refused(response, error)

    def _refused(self, response: httpx.Response, error: object = None) -> EndpointError:
        if response.status_code in (401, 403):
            return EndpointError(
                f"{self.url} refuses the token (status {response.status_code}): give token=..., or set COLQWEN_TOKEN."
            )
        if isinstance(error, Mapping) and error.get("message"):
            return EndpointError(f"{self.url} says: {error['message']} (status {response.status_code})")
        text = str(error or response.text)[:200]
        return EndpointError(f"{self.url} answers with status {response.status_code}: {text!r}.")


class _TransientError(Exception):
    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _RefusedItemError(Exception):
    def __init__(self, message: str, index: object) -> None:
        super().__init__(message)
        self.index = index if isinstance(index, int) else None


_backoff = wait_random_exponential(multiplier=0.5, max=_MAX_WAIT_S / 2)


def _pause(state: RetryCallState) -> float:
    """As long as the service asked for, else at random, up to twice as long each time."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, _TransientError) else None
    return _backoff(state) if asked is None else min(asked, _MAX_WAIT_S)


def _retry_after(value: str | None) -> float | None:
    """Read the header's seconds or date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidOptionError(f"A service's address starts with http:// or https://; got {url!r}.")
    if parts.username or parts.password or parts.query or parts.fragment:
        # It is kept with collections, which are passed on.
        raise InvalidOptionError("A service's address has no user, password or query in it: give the secret as token=.")
    return url.rstrip("/")


def _image(page: Page) -> bytes:
    try:
        return page.read_image()
    except (OSError, ValueError) as error:
        raise _unreadable(page, str(error)) from error


def _image_size(page: Page) -> int:
    if page.image is not None:
        return len(page.image)
    try:
        return Path(page.image_path).stat().st_size if page.image_path else 0
    except OSError:
        return 0  # reading it will tell


def _page_error(refused: _RefusedItemError, batch: Sequence[Page]) -> UnreadableDocumentError:
    position = 0 if refused.index is None or not 0 <= refused.index < len(batch) else refused.index
    return _unreadable(batch[position], str(refused))


def _unreadable(page: Page, why: str) -> UnreadableDocumentError:
    return UnreadableDocumentError(
        f"{page.file_name}: the image of page {page.page_number} cannot be read ({why.rstrip('.')})."
    )


def _unit_rows(vectors: MultiVector) -> MultiVector:
    """Make rows exactly unit, which float16 does not; rows of zeros, which some handlers pad with, are left out."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if norms.all():
        vectors /= norms
        return vectors
    kept = vectors[norms[:, 0] > 0]
    if not len(kept):
        raise ValueError("all its rows are zero")
    rows: MultiVector = np.asarray(kept / np.linalg.norm(kept, axis=1, keepdims=True))
    return rows


async def _all(coroutines: Iterable[Coroutine[Any, Any, list[_T]]]) -> list[_T]:
    """Run all, and join what they return; the first error ends the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return [item for items in await asyncio.gather(*tasks) for item in items]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Worker:
    """An event loop in a thread of its own, started when it is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def submit(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="colqwen-endpoint", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # as by Ctrl-C
            raise

    async def arun(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return await asyncio.wrap_future(self.submit(coroutine))

    def stop(self) -> None:
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
