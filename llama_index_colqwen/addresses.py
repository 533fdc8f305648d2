"""A service's address and token as someone typed them -> what can be asked and sent."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from llama_index_colqwen.errors import InvalidOptionError

__all__ = ["check_token", "split_address"]


def split_address(text: str, schemes: Collection[str] = ("http", "https")) -> SplitResult | None:
    """Split an address such as `https://host:8000/path`.

    None if it is none: another scheme, no host, or a port that there is not. Clients raise what they like for one.
    """
    try:
        parts = urlsplit(text)
        _ = parts.port  # is checked when it is read
    except (AttributeError, ValueError):
        return None
    return parts if parts.scheme in schemes and parts.hostname and " " not in parts.hostname else None


def check_token(name: str, token: str) -> str:
    """Return a bearer token, which may be empty.

    Raises:
        InvalidOptionError: If no header can hold it; without showing it.
    """
    if not isinstance(token, str) or not (token.isascii() and token.isprintable()):
        raise InvalidOptionError(f"{name} cannot be sent: a token is of printable ASCII characters.")
    return token
