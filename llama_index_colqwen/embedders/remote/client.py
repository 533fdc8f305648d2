"""Base64 images and texts -> multi-vectors, by HTTP requests that are tried again where that helps.

The other end of the contract; knows nothing of pages, nor of how work is split into requests.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic_core import from_json, to_json
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from llama_index_colqwen.addresses import check_token, split_address
from llama_index_colqwen.embedders.remote.contract import FINGERPRINT_HEADER, Limits, read_multi_vector
from llama_index_colqwen.errors import (
    DimensionMismatchError,
    EndpointError,
    EndpointUnavailableError,
    InvalidOptionError,
)
from llama_index_colqwen.fingerprint import EmbedderFingerprint, fingerprint_digest
from llama_index_colqwen.late_interaction.multivectors import MultiVector

if TYPE_CHECKING:
    import httpx

__all__ = ["EndpointClient", "RefusedItemError"]

_RETRIED = (429, 502, 503, 504)
_MAX_WAIT_S = 60.0
_CONNECT_S = 10.0
_FAULTS_OF_ITEMS = ("InvalidImage", "ImageTooLarge", "BodyTooLarge", "InvalidText", "TextTooLong")


class RefusedItemError(Exception):
    """The service says what is wrong with one of the images or texts.

    Attributes:
        index: Which; None if it did not say.
    """

    def __init__(self, message: str, index: int | None) -> None:
        """See the class."""
        super().__init__(message)
        self.index = index


class EndpointClient:
    """Ask a service of ours, or a Hugging Face endpoint with our handler; all methods run on one event loop.

    Attributes:
        url: Its address, without a slash at the end.
        limits: What it takes, as far as it said.

    Args:
        url: Its address.
        token: Sent as a bearer token, if it is not empty.
        timeout: Seconds to wait for an answer.
        max_retries: How often a request is tried again.

    Raises:
        InvalidOptionError: If the address is none, or has a secret in it.
    """

    def __init__(self, url: str, token: str, timeout: float, max_retries: int) -> None:
        """See the class."""
        self.url = _checked(url)
        self.limits = Limits(max_body_bytes=2**31)
        check_token("token (or COLQWEN_TOKEN)", token)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout, self._max_retries = timeout, max_retries
        self._client: httpx.AsyncClient | None = None
        self._digest: str | None = None

    @property
    def max_pages(self) -> int:
        """Pages a request at most."""
        return self.limits.max_items

    async def describe(self) -> EmbedderFingerprint:
        """Ask a service of ours what its model is, and what it takes; answers of another model are errors then.

        Raises:
            InvalidOptionError: If it does not say.
            EndpointUnavailableError: If it cannot be reached, or stays busy.
            EndpointError: If it refuses the token.
        """
        response = await self._request("GET", f"{self.url}/info")
        try:
            answer = from_json(response.content)
            fingerprint = EmbedderFingerprint(**answer["fingerprint"])
            limits = {name: answer["limits"][name] for name in Limits.__dataclass_fields__}
            self.limits = Limits(**limits)
        except (ValueError, TypeError, KeyError):
            if response.status_code in (401, 403):
                raise self._refused(response) from None
            raise InvalidOptionError(
                f"{self.url} does not say at /info which model it has (status {response.status_code}). If it is a "
                "Hugging Face endpoint, give fingerprint=EmbedderFingerprint(model, revision, dim); if it is a vLLM "
                'server, api="pooling"; else check the URL.'
            ) from None
        self._digest = fingerprint_digest(fingerprint)
        return fingerprint

    async def embed(
        self, kind: Literal["image", "text"], items: Sequence[str], batch_size: int, dim: int
    ) -> list[MultiVector]:
        """Return a multi-vector an item, float32, shape (num_tokens, dim), unit rows; with patch grids, if any come.

        Raises:
            RefusedItemError: If the service cannot embed one of them.
            EndpointUnavailableError: If it cannot be reached, or stays busy.
            EndpointError: If it fails, or answers something else.
            DimensionMismatchError: If it answers vectors of another dim.
        """
        body = to_json(
            {
                "inputs": [],
                kind: items,
                "batch_size": batch_size,
                "encoding": "base64-float16",
                "return_scores": False,
            }
        )
        response = await self._request("POST", self.url, content=body)
        answer = self._answer(response, len(items))
        self._check_model(response)
        values = answer.get(kind)
        if not isinstance(values, list):
            raise EndpointError(f"{self.url} answers no multi-vectors under {kind!r}.")
        if len(values) != len(items):
            raise EndpointError(f"{self.url} answers {len(values)} multi-vectors for {len(items)} of {kind!r}.")
        return self._vectors(values, read_multi_vector, dim)

    def forget_connections(self) -> None:
        """Leave the connections to the process that this one was forked off, without a word to the service."""
        self._client = None

    async def close(self) -> None:
        """Close the connections; a later request opens them again."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _request(self, method: str, url: str, content: bytes | None = None) -> httpx.Response:
        """Send a request, again if it is worth it; the answer may be a refusal."""
        attempts = AsyncRetrying(
            stop=stop_after_attempt(1 + self._max_retries),
            wait=_pause,
            retry=retry_if_exception_type(_TransientError),
            reraise=True,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    return await self._try(method, url, content)
        except _TransientError as error:
            tries = f" ({self._max_retries + 1} tries)" if self._max_retries else ""
            raise EndpointUnavailableError(f"{self.url} {error}{tries}: try again later.") from error.__cause__
        raise AssertionError("tenacity returns or raises")

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            import httpx

            timeout = httpx.Timeout(self._timeout, connect=min(_CONNECT_S, self._timeout))
            self._client = httpx.AsyncClient(headers=self._headers, timeout=timeout)
        return self._client

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

    def _check_model(self, response: httpx.Response) -> None:
        """Raise an error if an answer is of another model than those before."""
        digest = response.headers.get(FINGERPRINT_HEADER)
        self._digest = self._digest or digest
        if digest and digest != self._digest:
            raise EndpointError(
                f"{self.url} has another model than at first: vectors of two models cannot be "
                "compared. Make a new EndpointEmbedder, and a new collection."
            )

    def _vectors(self, values: Sequence[object], read: Callable[[object], MultiVector], dim: int) -> list[MultiVector]:
        try:
            vectors = [_unit_rows(read(value)) for value in values]
        except (KeyError, TypeError, ValueError) as error:
            raise EndpointError(f"{self.url} answers no multi-vectors: {error}.") from error
        if wrong := {vector.shape[1] for vector in vectors} - {dim}:
            raise DimensionMismatchError(
                f"{self.url} answers vectors of dim {wrong.pop()}, and its fingerprint says {dim}."
            )
        return vectors

    def _answer(self, response: httpx.Response, items: int) -> Mapping[str, Any]:
        try:
            answer = from_json(response.content)
        except ValueError:
            answer = None
        if response.is_success and isinstance(answer, Mapping) and "error" not in answer:
            return answer
        error = answer.get("error") if isinstance(answer, Mapping) else None
        if isinstance(error, Mapping) and error.get("type") in _FAULTS_OF_ITEMS:
            index = error.get("index")
            known = isinstance(index, int) and 0 <= index < items
            raise RefusedItemError(str(error.get("message")), index if known else None)
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


_backoff = wait_random_exponential(multiplier=0.5, max=_MAX_WAIT_S / 2)


def _pause(state: RetryCallState) -> float:
    """As long as the service asked for, else at random, up to twice as long each time."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, _TransientError) else None
    # A little later, each client by another time, so that not all come back at once.
    return _backoff(state) if asked is None else min(asked, _MAX_WAIT_S) * random.uniform(1, 1.25)


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
    parts = split_address(url)
    if parts is None:
        raise InvalidOptionError(f"A service's address is http:// or https://, a host and perhaps a port; got {url!r}.")
    if parts.username or parts.password or parts.query or parts.fragment:
        # It is kept with collections, which are passed on.
        raise InvalidOptionError("A service's address has no user, password or query in it: give the secret as token=.")
    return url.rstrip("/")


def _unit_rows(vectors: MultiVector) -> MultiVector:
    """Make rows exactly unit, which float16 does not; rows of zeros, which some handlers pad with, are left out."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)  # 1e20 squared is no float32
    if norms.all():
        vectors /= norms
        return vectors
    kept = norms[:, 0] > 0
    if not kept.any():
        raise ValueError("all its rows are zero")
    rows: MultiVector = (np.asarray(vectors)[kept] / norms[kept]).astype(np.float32)
    return rows
