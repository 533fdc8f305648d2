"""Page images and queries -> multi-vectors, by a model elsewhere: `colqwen serve`, a Hugging Face endpoint, vLLM.

Needs neither torch nor a GPU. Knows nothing of models, Milvus or LlamaIndex.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from llama_index_colqwen.concurrency import BackgroundLoop, after_fork, gather, in_thread, look_ahead
from llama_index_colqwen.embedders.remote.client import EndpointClient, RefusedItemError
from llama_index_colqwen.embedders.remote.pooling_client import PoolingClient
from llama_index_colqwen.errors import (
    ColQwenError,
    EndpointError,
    InvalidOptionError,
    QueryError,
    UnreadableDocumentError,
    check_count,
)
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.multivectors import MultiVector, PageVectors
from llama_index_colqwen.pages import Page
from llama_index_colqwen.progress import tqdm

__all__ = ["EndpointEmbedder"]

_T = TypeVar("_T")
_Batch = TypeVar("_Batch")

_QUERIES = 32
_REQUEST_BYTES = 4 * 2**20
"""What a request of several pages has at most; gateways before services often take little more."""


class EndpointEmbedder:
    """Embed pages and queries over HTTP, with the model of a `colqwen serve`, an `EndpointHandler` or a vLLM server.

    Safe for many threads and event loops: all requests are made in one thread of the embedder's own; processes that are
    forked off make a thread and connections of theirs. Requests are tried again after connection errors and the answers
    429, 502, 503 and 504, with growing pauses or as `Retry-After` says.

    Args:
        url: The service's address, such as "https://gpu.example.com".
        token: Sent as a bearer token; by default what is in the environment variable COLQWEN_TOKEN, if anything.
        fingerprint: What the model is. By default the service is asked; a Hugging Face endpoint cannot say, so there
            it has to be given, and to be true: collections are checked by it.
        batch_size: Pages a request.
        concurrency: Requests under way at a time.
        timeout: Seconds to wait for an answer. (A page takes a minute where the service has no GPU.)
        max_retries: How often a request is tried again; some ten seconds in all. (A Hugging Face endpoint that sleeps
            takes minutes to wake: 15.)
        api: What the service speaks: "colqwen", or "pooling" as a vLLM server does that has a late-interaction model
            (ColQwen3, ColQwen3.5, ColPali). Such a server says its model's name and no revision; where that matters,
            give a fingerprint, whose model is the name that the server knows.
        query_prefix: For "pooling" alone, put before each query, as such a server reads texts as they come. What the
            model was trained with; our own service puts it there by itself.

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
        api: Literal["colqwen", "pooling"] = "colqwen",
        query_prefix: str = "",
    ) -> None:
        """Ask the service what its model is; see the class."""
        check_count("batch_size", batch_size)
        check_count("concurrency", concurrency)
        if timeout <= 0 or max_retries < 0:
            raise InvalidOptionError(
                f"timeout is more than 0, and max_retries 0 or more; got {timeout!r} and {max_retries!r}."
            )
        token = os.environ.get("COLQWEN_TOKEN", "").strip() if token is None else token
        if api not in ("colqwen", "pooling") or query_prefix and api != "pooling":
            raise InvalidOptionError(
                f'api is "colqwen" or "pooling", and query_prefix is for "pooling"; got {api!r} and {query_prefix!r}.'
            )
        self._client = EndpointClient(url, token, timeout, max_retries)
        if api == "pooling":
            model = fingerprint.model if fingerprint else ""
            self._client = PoolingClient(url, token, timeout, max_retries, query_prefix=query_prefix, model=model)
        self._timeout, self._max_retries, self._api, self._query_prefix = timeout, max_retries, api, query_prefix
        self.url, self.batch_size, self.concurrency = self._client.url, batch_size, concurrency
        self._slots: asyncio.Semaphore | None = None
        self._loop = BackgroundLoop()
        after_fork(self._forget)
        try:
            fingerprint = fingerprint or self._loop.run(self._client.describe)
        except BaseException:
            self.close()
            raise
        # Kept with collections: it says where their vectors came from.
        self.fingerprint = replace(fingerprint, location=self.url)
        self.dim = fingerprint.dim

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what the embedder was made with, without its token: unpickled, it takes `COLQWEN_TOKEN`."""
        made_with: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "batch_size": self.batch_size,
            "concurrency": self.concurrency,
            "timeout": self._timeout,
            "max_retries": self._max_retries,
            "api": self._api,
            "query_prefix": self._query_prefix,
        }
        return partial(type(self), self.url, **made_with), ()

    # ---- pages

    def embed_pages(self, pages: Sequence[Page], show_progress: bool = True) -> list[MultiVector]:
        """Embed page images, several requests at a time.

        Returns:
            For each page `PageVectors`: float32, shape (num_tokens, dim), unit rows, no padding; with the patch grid,
            if the service sends one. They come as float16, within 5e-4 of what the model computed.

        Raises:
            UnreadableDocumentError: If a page's image is gone, or the service cannot decode it.
            EndpointUnavailableError: If the service cannot be reached, or stays busy.
            EndpointError: If it fails, or answers something else.
        """
        return self._loop.run(self._embed_pages, pages, show_progress)

    async def aembed_pages(self, pages: Sequence[Page], show_progress: bool = True) -> list[MultiVector]:
        """As `embed_pages`; when it is cancelled, the service is left alone."""
        return await self._loop.arun(self._embed_pages, pages, show_progress)

    def stream_pages(self, pages: Iterable[Page]) -> Iterator[tuple[Page, MultiVector]]:
        """Embed pages as they come, `concurrency` requests at a time; an error comes after the pages before it.

        Yields:
            Each page with its vectors, as `embed_pages` gives them, in order.
        """
        process = os.getpid()
        under_way: list[Future[list[MultiVector]]] = []

        def submit(batch: list[Page]) -> tuple[list[Page], Future[list[MultiVector]]]:
            future = self._loop.submit(self._embed_pages, batch, False)
            under_way.append(future)
            return batch, future

        try:
            requests = (submit(batch) for batch in gather(pages, self.batch_size, first=1))
            for batch, future in look_ahead(requests, self.concurrency):
                yield from zip(batch, future.result(), strict=True)
                under_way.remove(future)
        finally:
            if os.getpid() == process:  # a fork's copies of them belong to a loop that is not there
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
        return self._loop.run(self._embed_queries, queries)

    async def aembed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        """As `embed_queries`."""
        return await self._loop.arun(self._embed_queries, queries)

    # ---- closing

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        self._loop.run(self._disconnect)
        self._loop.stop()

    aclose = in_thread(close)

    def __enter__(self) -> EndpointEmbedder:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    # ---- what runs on the background loop

    async def _embed_pages(self, pages: Sequence[Page], show_progress: bool) -> list[MultiVector]:
        with tqdm(
            total=len(pages), desc="Embedding pages", unit="page", disable=not show_progress, delay=1
        ) as progress:

            async def embed(batch: list[Page]) -> list[MultiVector]:
                async with self._slot():
                    images = [base64.b64encode(_image(page)).decode("ascii") for page in batch]
                    try:
                        vectors = await self._client.embed("image", images, self.batch_size, self.dim)
                    except RefusedItemError as refused:
                        raise self._page_error(refused, batch) from None
                progress.update(len(batch))
                return [vector if isinstance(vector, PageVectors) else PageVectors(vector) for vector in vectors]

            return await _for_all(embed, self._split(pages))

    async def _embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        if not all(isinstance(query, str) and query.strip() for query in queries):
            raise QueryError("The query is empty.")

        async def embed(batch: list[str]) -> list[MultiVector]:
            async with self._slot():
                try:
                    return await self._client.embed("text", batch, len(batch), self.dim)
                except RefusedItemError as refused:
                    which = repr(batch[refused.index or 0][:40])
                    raise QueryError(f"{self.url} refuses the query {which}: {refused}") from None

        # Half a letter is none, and no JSON.
        texts = [query.encode("utf-8", "replace").decode("utf-8") for query in queries]
        return await _for_all(embed, gather(texts, min(_QUERIES, self._client.limits.max_items)))

    def _split(self, pages: Sequence[Page]) -> Iterator[list[Page]]:
        """Make requests of pages: so many, and of so many bytes."""
        most_pages = min(self.batch_size, self._client.max_pages)
        most_bytes = min(_REQUEST_BYTES, self._client.limits.max_body_bytes - 1000)
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

    def _page_error(self, refused: RefusedItemError, batch: Sequence[Page]) -> ColQwenError:
        if refused.index is None and len(batch) > 1:
            return EndpointError(f"{self.url} refuses {len(batch)} pages at once: {refused} Lower batch_size.")
        return _unreadable(batch[refused.index or 0], str(refused))

    def _slot(self) -> asyncio.Semaphore:
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.concurrency)
        return self._slots

    def _forget(self) -> None:
        self._slots = None
        self._client.forget_connections()

    async def _disconnect(self) -> None:
        self._slots = None
        await self._client.close()


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


def _unreadable(page: Page, why: str) -> UnreadableDocumentError:
    return UnreadableDocumentError(
        f"{page.file_name}: the image of page {page.page_number} cannot be read ({why.rstrip('.')})."
    )


async def _for_all(function: Callable[[_Batch], Awaitable[list[_T]]], batches: Iterable[_Batch]) -> list[_T]:
    """Call a function with all batches at once, and join what it returns; the first error ends the others."""
    import anyio

    found: dict[int, list[_T]] = {}
    errors: list[Exception] = []

    async def call(number: int, batch: _Batch) -> None:
        try:
            found[number] = await function(batch)
        except Exception as error:
            errors.append(error)
            group.cancel_scope.cancel()

    # Not asyncio.gather: the loop is anyio's, whose cancelling reaches only the tasks of a group in peace.
    async with anyio.create_task_group() as group:
        for number, batch in enumerate(batches):
            group.start_soon(call, number, batch)
    if errors:
        raise errors[0]
    return [item for _, items in sorted(found.items()) for item in items]
