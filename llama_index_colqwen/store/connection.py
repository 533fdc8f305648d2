"""A `uri` and a token -> a Milvus client, and Milvus's errors -> ours.

Knows nothing of pages or vectors.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from llama_index_colqwen.addresses import split_address
from llama_index_colqwen.concurrency import Lock, after_fork
from llama_index_colqwen.errors import InvalidOptionError, StoreError, StoreLockedError

if TYPE_CHECKING:
    from pymilvus import MilvusClient

__all__ = ["MilvusConnection", "is_local", "is_one_of", "normalise_uri", "quote", "split_credentials"]

# At each fork while Milvus is asked, gRPC would say on stderr that it skips its part of it. Read when gRPC is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

_CONNECT_SECONDS = 10
# pymilvus pings every 10 seconds; a Milvus Lite that has had nothing to do for a minute, as while a model computes on a
# CPU, closes the connection over that, loudly. Every five minutes is what gRPC servers allow.
_GRPC_OPTIONS = {
    "grpc.keepalive_time_ms": 300_000,
    "grpc.use_local_subchannel_pool": 1,  # a forked process does not go on with its parent's sockets
}

# Held while a Milvus Lite file is opened or unlocked: two engines on one file would be one too many.
_LITE_LOCKS: dict[str, Lock] = {}


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
        if split_address(text, ("http", "https", "tcp")) is None and not text.startswith("unix:"):
            # The text is not shown: there may be a password in it.
            raise InvalidOptionError(
                "uri is no server's address such as http://localhost:19530. Give user and password as "
                "token='user:password', if there are characters in them that no address has."
            )
        return text
    text = text.rstrip("/" + os.sep)  # as the shell completes it: the database is a folder
    if not text.endswith(".db"):
        raise InvalidOptionError(
            f"uri is a path ending in .db, or a server's address such as http://localhost:19530; got {text!r}."
        )
    return str(Path(os.path.expanduser(text)).resolve())


def split_credentials(uri: str) -> tuple[str, str | None]:
    """Take user and password out of an address, so that no error shows them.

    Returns:
        The address without them, and what pymilvus takes as its token: `user:password`, or None.
    """
    if is_local(uri):
        return uri, None
    parts = urlsplit(uri)
    credentials, found, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=host)), credentials if found else None


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
        self._lock = Lock()
        after_fork(self._leave_to_parent)
        self._client: MilvusClient | None = None
        self._close: weakref.finalize[..., MilvusConnection] | None = None

    @property
    def client(self) -> MilvusClient:
        """The client; a Milvus Lite file is created if it is not there.

        Raises:
            StoreLockedError: If another process holds the Milvus Lite file.
            StoreError: If no server answers, or the path cannot be a database or written.
        """
        client = self._client
        if client is not None:
            return client
        with self._lock:
            if self._client is None:
                self._client = _connect_lite(self.uri) if self.is_local else _connect_server(self.uri, self._token)
                # A connection that was dropped without being closed (a notebook's cell that was run again) must not
                # keep the file locked. At exit, Milvus Lite unlocks it.
                self._close = weakref.finalize(self, _disconnect_soon, self._client, self.uri, os.getpid())
                self._close.atexit = False
            return self._client

    def _leave_to_parent(self) -> None:
        _LEFT.append(self._client)
        self._client = None
        if self._close is not None:
            self._close.detach()

    @property
    def is_open(self) -> bool:
        """Whether there is a client."""
        return self._client is not None

    def close(self) -> None:
        """Close the client; the last one of this process on a Milvus Lite file unlocks the file."""
        with self._lock:
            client, self._client = self._client, None
            if self._close is not None:
                self._close.detach()
        if client is not None:
            _disconnect(client, self.uri)

    def lite_state(self, collection_name: str) -> str | None:
        """Name the state of a collection's files in Milvus Lite; None where they do not lie as they did in 3.2.

        Any change appends to a log or adds a file. What searching adds (indexes) is left out.
        """
        folder = Path(self.uri) / "collections" / collection_name
        if not self.is_local or not (folder / "manifest.json").is_file():
            return None
        state = hashlib.sha256((folder / "manifest.json").read_bytes())
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder).as_posix()
            if path.is_file() and "indexes/" not in relative and not relative.startswith("manifest.json"):
                state.update(f"{relative} {path.stat().st_size}\n".encode())
        return state.hexdigest()

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

    with _LITE_LOCKS.setdefault(uri, Lock()):
        # The engine is shared by all clients of this process on the file, whoever made them.
        if not _has_clients(uri):
            server_manager_instance.release_server(uri)


def _disconnect_soon(client: MilvusClient, uri: str, process: int) -> None:
    """Disconnect in a thread: the garbage collector may call this while its thread holds the engine's locks."""
    if os.getpid() != process:
        return  # it is the parent's
    threading.Thread(target=_disconnect, args=(client, uri), name="colqwen-close").start()


def _has_clients(path: str) -> bool:
    """Whether a client of this process uses the Milvus Lite file; pymilvus knows its clients by their addresses."""
    from milvus_lite.server_manager import server_manager_instance
    from pymilvus.client.connection_manager import AsyncConnectionManager, ConnectionManager

    server = server_manager_instance._servers.get(path)
    if server is None:
        return False
    address = f"127.0.0.1:{server[2]}"
    for manager in (ConnectionManager.get_instance(), *AsyncConnectionManager._instances.values()):
        for managed in [*manager._registry.values(), *manager._dedicated.values()]:
            if managed.config.address == address and managed.has_clients:
                return True
    return False


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
    from pymilvus.exceptions import ConnectionConfigException

    from llama_index_colqwen.store.lite_client import LiteClient

    if Path(path).is_file():
        raise StoreError(
            f"{path} is a file, and Milvus Lite 3 keeps a folder (version 2 kept a file): use another uri."
        )
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path} cannot be created ({error.strerror}): use another uri.") from error
    with _LITE_LOCKS.setdefault(path, Lock()):
        with _quiet() as logged:
            try:
                # pymilvus shares connections by address and never closes those. Milvus Lite takes another port each
                # time, and once in a while one that a closed file had, whose connection would be found dead.
                return LiteClient(path, grpc_options=_GRPC_OPTIONS, dedicated=True)
            except ConnectionConfigException as error:
                raise _lite_error(path, logged) from error


_LEFT: list[object] = []
"""What a forked process has of its parent's: never used, never closed, and never freed, which would close it."""


def _leave_to_parent() -> None:
    """In a forked process, let pymilvus and Milvus Lite begin anew; a file that the parent holds is locked."""
    if (pool := sys.modules.get("pymilvus.client.connection_manager")) is not None:
        _LEFT.append(pool.ConnectionManager._instance)
        pool.ConnectionManager._instance, pool.ConnectionManager._instance_lock = None, threading.Lock()
    if (lite := sys.modules.get("milvus_lite.server_manager")) is not None:
        manager = lite.server_manager_instance
        _LEFT.append(manager._servers)
        for _, database, _ in manager._servers.values():
            with suppress(OSError, TypeError):
                os.close(database._lock_fd)  # the lock stays the parent's, and ends with it
        manager._servers, manager._lock = {}, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _lite_error(path: str, logged: Sequence[BaseException]) -> StoreError:
    """Say why Milvus Lite does not open a file; it logs the cause, and raises that there was one."""
    from milvus_lite.exceptions import DataDirLockedError

    if any(isinstance(error, DataDirLockedError) for error in logged):
        return StoreLockedError(
            f"{path} is in use by another process, and Milvus Lite serves one at a time: close that program or "
            f"notebook, or let many share it by running `milvus-lite server --data-dir {path} --host 127.0.0.1 "
            "--port 19530` and opening uri='http://127.0.0.1:19530' everywhere."
        )
    folder = path if Path(path).exists() else str(Path(path).parent)
    if not os.access(folder, os.W_OK):
        return StoreError(
            f"{path} cannot be written (a read-only file system, or no permission), and Milvus Lite writes to what it "
            "opens: copy the folder to where it can be written, with its cache and images beside it."
        )
    cause = "; ".join(f"{type(error).__name__}: {error}" for error in logged) or "no cause was given"
    return StoreError(f"Milvus Lite cannot open {path} ({cause}): restore it from a copy, or use another uri.")


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
def _quiet() -> Iterator[list[BaseException]]:
    """Let these loggers say nothing; the exceptions that they would have shown are kept in the list."""
    logged: list[BaseException] = []

    # A new filter each time, so that threads do not end each other's silence.
    def drop(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            logged.append(record.exc_info[1])
        return False

    for name in _LOGGERS:
        logging.getLogger(name).filters.insert(0, drop)  # first: the filter of a caller's silence would hide it
    try:
        yield logged
    finally:
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(drop)
