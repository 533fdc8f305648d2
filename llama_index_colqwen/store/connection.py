"""A `uri` and a token -> a Milvus client, and Milvus's errors -> ours.

Knows nothing of pages or vectors.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llama_index_colqwen.errors import InvalidOptionError, StoreError, StoreLockedError

if TYPE_CHECKING:
    from pymilvus import MilvusClient

__all__ = ["MilvusConnection", "is_local", "is_one_of", "normalise_uri", "quote"]

_CONNECT_SECONDS = 10
# pymilvus pings every 10 seconds; a Milvus Lite that has had nothing to do for a minute, as while a model computes on a
# CPU, closes the connection over that, loudly. Every five minutes is what gRPC servers allow.
_GRPC_OPTIONS = {"grpc.keepalive_time_ms": 300_000}

# Milvus Lite's engine is shared by all clients of this process on the same file, and keeps the file locked after the
# last of them is closed; so they are counted, and the last one unlocks the file.
_LITE_LOCK = threading.Lock()
_LITE_CLIENTS: dict[str, int] = {}


def is_local(uri: str) -> bool:
    """Whether a uri is a path for Milvus Lite, and not a server's address."""
    return "://" not in uri


def normalise_uri(uri: str | Path) -> str:
    """Make a path absolute, so that it names the same database after a change of directory.

    Raises:
        InvalidOptionError: If it is neither a path ending in `.db` nor an address.
    """
    text = str(uri)
    if not is_local(text):
        return text
    if not text.endswith(".db"):
        raise InvalidOptionError(
            f"uri is a path ending in .db, or a server's address such as http://localhost:19530; got {text!r}."
        )
    return str(Path(text).expanduser().resolve())


class MilvusConnection:
    """A client that is made when it is first needed, and whose errors name the collection and the database.

    Args:
        uri: Normalised.
        token: For servers that ask for one.
        collection_name: What errors speak of.
    """

    def __init__(self, uri: str, token: str | None, collection_name: str) -> None:
        """See the class; nothing is opened yet."""
        self.uri, self.is_local = uri, is_local(uri)
        self._token, self._collection_name = token, collection_name
        self._lock = threading.Lock()
        self._client: MilvusClient | None = None

    @property
    def client(self) -> MilvusClient:
        """The client; a Milvus Lite file is created if it is not there.

        Raises:
            StoreLockedError: If another process holds the Milvus Lite file.
            StoreError: If no server answers, or the path cannot be a database.
        """
        with self._lock:
            if self._client is None:
                self._client = _connect_lite(self.uri) if self.is_local else _connect_server(self.uri, self._token)
            return self._client

    @property
    def is_open(self) -> bool:
        """Whether there is a client."""
        return self._client is not None

    def close(self) -> None:
        """Close the client; the last one of a Milvus Lite file unlocks the file."""
        with self._lock:
            if self._client is not None:
                _disconnect(self._client, self.uri)
                self._client = None

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Turn what Milvus raises into a `StoreError` that names the action, the collection and the database."""
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            with _quiet():
                yield
        except (MilvusException, grpc.RpcError) as error:
            what = error.message if isinstance(error, MilvusException) else str(error.details())
            raise StoreError(
                f"Milvus could not {action} collection {self._collection_name!r} at {self.uri}: {what} "
                f"{_next_step(what)}"
            ) from error


def _next_step(what: str) -> str:
    if any(sign in what for sign in ("No space left", "File too large", "disk quota", "Disk quota")):
        return "(Make room on the disk and run the same again: what was stored by then is kept.)"
    if any(sign in what for sign in ("connect", "UNAVAILABLE", "unavailable", "deadline", "Deadline", "retry")):
        return "(Check that the server runs and run the same again: what was stored by then is kept.)"
    return "(What was stored by then is kept; `colqwen doctor` tries what works on this machine.)"


def _disconnect(client: MilvusClient, uri: str) -> None:
    client.close()
    if not is_local(uri):
        return
    from milvus_lite.server_manager import server_manager_instance

    with _LITE_LOCK:
        _LITE_CLIENTS[uri] -= 1
        if not _LITE_CLIENTS[uri]:
            del _LITE_CLIENTS[uri]
            server_manager_instance.release_server(uri)


def quote(value: str) -> str:
    """Write a string literal of Milvus's filter language.

    All engines know these escapes, and take other control characters as they are; Milvus Lite refuses JSON's for them.
    """
    return f'"{value.translate(_ESCAPES)}"'


_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def is_one_of(field: str, values: Sequence[str]) -> str:
    """Write the filter that keeps rows whose field is one of the values.

    pymilvus's own `ids=[...]` pastes ids between single quotes as they are: an apostrophe breaks out of it.
    """
    return f"{field} in [{', '.join(map(quote, values))}]"


def _connect_lite(path: str) -> MilvusClient:
    from pymilvus import MilvusClient
    from pymilvus.exceptions import ConnectionConfigException

    if Path(path).is_file():
        raise StoreError(
            f"{path} is a file, and Milvus Lite 3 keeps a folder (version 2 kept a file): use another uri."
        )
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path} cannot be created ({error.strerror}): use another uri.") from error
    with _LITE_LOCK:
        try:
            with _quiet():
                client = MilvusClient(path, grpc_options=_GRPC_OPTIONS)
        except ConnectionConfigException as error:
            raise StoreLockedError(
                f"{path} is in use by another process, and Milvus Lite serves one at a time: close that program or "
                f"notebook, or let many share it by running `milvus-lite server --data-dir {path} --host 127.0.0.1 "
                "--port 19530` and opening uri='http://127.0.0.1:19530' everywhere."
            ) from error
        _LITE_CLIENTS[path] = _LITE_CLIENTS.get(path, 0) + 1
    return client


def _connect_server(uri: str, token: str | None) -> MilvusClient:
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    try:
        with _quiet():
            return MilvusClient(uri=uri, token=token or "", timeout=_CONNECT_SECONDS, grpc_options=_GRPC_OPTIONS)
    except MilvusException as error:
        raise StoreError(
            f"No Milvus answers at {uri} ({error.message}): start the server, or check uri and token. "
            "A path ending in .db needs no server."
        ) from error


# Who logs a traceback of what is then raised and becomes an error of ours, or (grpc, serving Milvus Lite) of what
# pymilvus asks of every server and can do without.
_LOGGERS = (
    "grpc._server",
    "milvus_lite.adapter.grpc.servicer",
    "milvus_lite.server_manager",
    "pymilvus.client.connection_manager",
    "pymilvus.decorators",
)


@contextmanager
def _quiet() -> Iterator[None]:
    # A new filter each time, so that threads do not end each other's silence.
    def drop(record: logging.LogRecord) -> bool:
        return False

    for name in _LOGGERS:
        logging.getLogger(name).addFilter(drop)
    try:
        yield
    finally:
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(drop)
