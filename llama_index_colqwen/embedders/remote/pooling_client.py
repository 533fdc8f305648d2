"""Base64 images and texts -> multi-vectors, by the requests that a vLLM server takes at `/pooling`.

Knows nothing of pages, nor of how work is split into requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, Literal

from pydantic_core import from_json, to_json

from llama_index_colqwen.embedders.remote.client import EndpointClient, RefusedItemError
from llama_index_colqwen.embedders.remote.pooling import page_message, read_pooled
from llama_index_colqwen.errors import EndpointError, InvalidOptionError
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.multivectors import MultiVector

__all__ = ["PoolingClient"]


class PoolingClient(EndpointClient):
    """Ask a vLLM server, or our service as if it were one.

    Args:
        url: Its address.
        token: Sent as a bearer token, if it is not empty.
        timeout: Seconds to wait for an answer.
        max_retries: How often a request is tried again.
        query_prefix: Put before each text.
        model: What the server calls its model; empty to ask it.

    Raises:
        InvalidOptionError: If the address is none, or has a secret in it.
    """

    def __init__(
        self, url: str, token: str, timeout: float, max_retries: int, *, query_prefix: str = "", model: str = ""
    ) -> None:
        """See the class."""
        super().__init__(url, token, timeout, max_retries)
        self._model, self._query_prefix = model, query_prefix
        self._dim = 0  # of what it answered; base64 does not say

    @property
    def max_pages(self) -> int:
        """Pages a request: a conversation is one."""
        return 1

    async def describe(self) -> EmbedderFingerprint:
        """Ask for the model's name, and for a query's vectors; the server does not say which weights it has.

        Raises:
            InvalidOptionError: If it has no model, or several.
            EndpointUnavailableError: If it cannot be reached, or stays busy.
            EndpointError: If it refuses the token, or makes no multi-vectors.
        """
        response = await self._request("GET", f"{self.url}/v1/models")
        if response.status_code in (401, 403):
            raise self._refused(response)
        try:
            names = [str(model["id"]) for model in from_json(response.content)["data"]]
        except (ValueError, TypeError, KeyError):
            names = []
        if len(names) != 1:
            raise InvalidOptionError(
                f"{self.url} does not say at /v1/models that it has one model (status {response.status_code}, "
                f"{len(names)} models). Give fingerprint=EmbedderFingerprint(model, revision, dim), or check the URL."
            )
        self._model = names[0]
        answer = await self._pool({"input": ["dim"]}, 1)
        try:
            dim = len(answer[0][0])
        except (TypeError, IndexError):
            raise EndpointError(
                f"{self.url} answers no multi-vectors: serve a late-interaction model, with the task token_embed."
            ) from None
        return EmbedderFingerprint(self._model, "unknown", dim, {"api": "pooling", "query_prefix": self._query_prefix})

    async def embed(
        self, kind: Literal["image", "text"], items: Sequence[str], batch_size: int, dim: int
    ) -> list[MultiVector]:
        """As `EndpointClient.embed`; an image is a request of its own."""
        if kind == "text":
            request: dict[str, Any] = {"input": [self._query_prefix + text for text in items]}
            return await self._embed(request, len(items), dim)
        return [vectors for image in items for vectors in await self._embed({"messages": page_message(image)}, 1, dim)]

    async def _embed(self, request: Mapping[str, Any], expected: int, dim: int) -> list[MultiVector]:
        # Lists first: they show the dim, where rows of another would be read as so many others of ours.
        encoding = "base64" if self._dim == dim else "float"
        rows = await self._pool({**request, "encoding_format": encoding}, expected)
        vectors = self._vectors(rows, partial(read_pooled, dim=dim), dim)
        self._dim = dim
        return vectors

    async def _pool(self, request: Mapping[str, Any], expected: int) -> list[Any]:
        body = to_json({"model": self._model, **request})
        response = await self._request("POST", f"{self.url}/pooling", content=body)
        try:
            answer = self._answer(response, expected)
        except EndpointError as error:
            if "messages" in request and response.status_code == HTTPStatus.BAD_REQUEST:
                raise RefusedItemError(str(error), 0) from None  # too large for its context, or no picture
            raise
        self._check_model(response)
        try:
            data = sorted(answer["data"], key=lambda item: item["index"])
            rows = [item["data"] for item in data]
        except (KeyError, TypeError) as error:
            raise EndpointError(f"{self.url} answers no multi-vectors under 'data': {error!r}.") from error
        if len(rows) != expected:
            raise EndpointError(f"{self.url} answers {len(rows)} multi-vectors for {expected} items.")
        return rows
