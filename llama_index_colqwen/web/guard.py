"""Requests -> those that may pass: of this machine's browser, of our own page, with the token where there is one.

Knows nothing of routes, but that those beneath `/api/` are guarded, and that the others are the page itself.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from http import HTTPStatus
from urllib.parse import urlsplit

from llama_index_colqwen.errors import MissingDependencyError

try:
    from starlette.datastructures import MutableHeaders
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise MissingDependencyError("The page needs Starlette", "ui") from error

__all__ = ["MARK_HEADER", "Guard", "refusal", "sign_in"]

MARK_HEADER = "X-ColQwen-UI"
"""What the page sends with each request: pages of other sites cannot without asking first, which is not granted."""

_SESSION = "/api/session"

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address holds what was asked
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def refusal(sentence: str, status: int, **more: object) -> Response:
    """Answer with a sentence that the page shows."""
    return Response(json.dumps({"error": sentence, **more}), status, media_type="application/json")


class Guard:
    """Lets through what may pass, and adds the headers that keep a browser from doing more.

    - Without a token, the request has to name this machine as its host: a name that another site points to 127.0.0.1
      (DNS rebinding) is refused. With a token, the machine may have any name.
    - What another site's page asks for is refused, and what would change something also if it does not say that it
      comes from our page.
    - With a token, `/api/` wants it: as the cookie that `sign_in` sets, or as a bearer token.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        """Guard an application."""
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store" if scope["path"].startswith("/api/") else "no-cache")
            await send(message)

        refused = self._refusal(Request(scope))
        await (refused or self._app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if self._token is None and not _is_this_machine(host):
            return refusal(
                f"The host {host[:100]!r} is not this machine: open the address that `colqwen ui` printed.",
                HTTPStatus.MISDIRECTED_REQUEST,
            )
        if not request.url.path.startswith("/api/"):
            return None
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return refusal("Pages of other sites may not ask for this.", HTTPStatus.FORBIDDEN)
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin")
            if MARK_HEADER not in request.headers or (origin is not None and urlsplit(origin).netloc != host):
                return refusal(f"Only the page itself may do this; it sends {MARK_HEADER}.", HTTPStatus.FORBIDDEN)
        if self._token is not None and request.url.path != _SESSION and not self._knows_token(request):
            return refusal("The token is missing or wrong.", HTTPStatus.UNAUTHORIZED)
        return None

    def _knows_token(self, request: Request) -> bool:
        assert self._token is not None
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(sent.strip(), self._token):
            return True
        return _same(request.cookies.get(_cookie_name(request), ""), _session(self._token))


def sign_in(request: Request, token: str | None, sent: str) -> Response | None:
    """Answer the right token with a cookie that no script reads and no other site's page sends; None if it is wrong."""
    if token is None or not _same(sent, token):
        return None
    response = Response(status_code=HTTPStatus.NO_CONTENT)
    response.set_cookie(_cookie_name(request), _session(token), path="/api/", httponly=True, samesite="strict")
    return response


def _session(token: str) -> str:
    """Return what the cookie holds: it lets in, and does not tell the token."""
    return hashlib.sha256(b"colqwen ui\0" + token.encode()).hexdigest()


def _cookie_name(request: Request) -> str:
    """Return a name of this port: cookies are shared by all ports of a host."""
    return f"colqwen-ui-{request.url.port or 0}"


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _is_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
