"""An application -> a process that answers on an address.

Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

from llama_index_colqwen.errors import InvalidOptionError, MissingDependencyError

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise MissingDependencyError("Serving needs uvicorn", "ui") from error

__all__ = ["bind", "make_server"]

_HEAD_S = 10.0
_MAX_CONNECTIONS = 1024


def bind(host: str, port: int, *, token: str | None, variable: str = "COLQWEN_TOKEN") -> socket.socket:
    """Take an address, before a model is loaded for it; connections are refused until `run` listens.

    Args:
        host: A name or an address of this machine.
        port: 0 for any that is free.
        token: What clients will have to send, if anything.
        variable: The environment's, that it is from.

    Raises:
        InvalidOptionError: If there is no such port; if the address is in use or not of this machine; or if other
            machines could connect and no token is asked of them.
    """
    if not 0 <= port < 2**16:  # of a larger one, the system takes the remainder
        raise InvalidOptionError(f"port is a whole number from 0 to 65535; got {port}.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise _unusable(host, port, error) from error
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback and not token:
        raise InvalidOptionError(
            f"On {host}, other machines can connect: set a secret in the environment variable {variable}, which is "
            "then asked of them; or stay on 127.0.0.1."
        )
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise _unusable(host, port, error) from error
    return taken


def _unusable(host: str, port: int, error: OSError) -> InvalidOptionError:
    return InvalidOptionError(f"Nothing can listen on {host}, port {port}: {error.strerror or error}. Choose another.")


def make_server(app: Any) -> uvicorn.Server:  # noqa: ANN401 - any ASGI application
    """Make what answers: `make_server(app).run(sockets=[bind(...)])`.

    It ends at SIGINT or SIGTERM, when requests that have begun are answered, or at once if the signal comes twice.
    """
    config = uvicorn.Config(
        app,
        http=_HeadTimeoutProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=30,
    )
    return uvicorn.Server(config)


class _HeadTimeoutProtocol(H11Protocol):
    """Closes connections whose request's head takes too long; uvicorn would wait for ever."""

    _timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        head_is_here = self.cycle is not None and not self.cycle.response_complete
        if head_is_here or self.transport.is_closing():
            self._stop()
        elif self._timeout is None:
            self._timeout = self.loop.call_later(_HEAD_S, self.transport.close)

    def _stop(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
