"""A service's address as someone typed it -> its parts, or nothing if no service can have it."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

__all__ = ["split_address"]


def split_address(text: str, schemes: Collection[str] = ("http", "https")) -> SplitResult | None:
    """Split an address such as `https://host:8000/path`.

    None if it is none: another scheme, no host, or a port that there is not. Clients would raise whatever they like.
    """
    try:
        parts = urlsplit(text)
        _ = parts.port  # is checked when it is read
    except (AttributeError, ValueError):
        return None
    return parts if parts.scheme in schemes and parts.hostname and not set(parts.hostname) & set(" \t") else None
