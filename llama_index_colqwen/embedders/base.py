"""What every embedder is, and how one is chosen by name.

Knows nothing of any one embedder until it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from llama_index_colqwen.errors import InvalidOptionError
from llama_index_colqwen.pages import MultiVector, Page

__all__ = ["EmbedderFingerprint", "MultiVectorEmbedder", "resolve_embedder"]


@dataclass(frozen=True)
class EmbedderFingerprint:
    """Everything that decides what an embedder's vectors mean; vectors of equal fingerprints can be compared.

    Attributes:
        model: The model's name.
        revision: The weights' (or the method's) version.
        dim: Length of each vector.
        options: Whatever else changes the vectors, such as a query prefix or token pooling.
    """

    model: str
    revision: str
    dim: int
    options: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)

    def to_json(self) -> str:
        """Write as JSON with sorted keys, so that equal fingerprints are equal texts."""
        return json.dumps({**asdict(self), "options": dict(self.options)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EmbedderFingerprint:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

    def __str__(self) -> str:
        """Describe for error messages."""
        options = "".join(f", {name}={value!r}" for name, value in sorted(self.options.items()))
        return f"{self.model} (revision {self.revision}, {self.dim}-dim{options})"


@runtime_checkable
class MultiVectorEmbedder(Protocol):
    """Pages and queries -> multi-vectors that MaxSim compares.

    Any object with these members is an embedder; nothing needs to be inherited.
    """

    @property
    def dim(self) -> int:
        """Length of each vector."""

    @property
    def fingerprint(self) -> EmbedderFingerprint:
        """What decides the vectors' meaning; kept with the collection and checked whenever it is opened."""

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        """Embed pages: float32, shape (num_tokens, dim), at least one row, unit rows, no padding, one a page."""

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        """Embed queries: as `embed_pages`, one a query.

        Raises:
            QueryError: If a query is blank or holds nothing that the embedder can read.
        """


def resolve_embedder(embedder: str | EmbedderFingerprint | MultiVectorEmbedder) -> MultiVectorEmbedder:
    """Return the embedder of a name, the one that a collection's fingerprint describes, or the embedder itself.

    Raises:
        InvalidOptionError: If there is no embedder of that name, or the object is not an embedder.
    """
    if isinstance(embedder, MultiVectorEmbedder):
        return embedder
    options: Mapping[str, Any] = embedder.options if isinstance(embedder, EmbedderFingerprint) else {}
    name = embedder.model if isinstance(embedder, EmbedderFingerprint) else embedder
    if name == "lexical":
        from llama_index_colqwen.embedders.lexical import LexicalEmbedder

        return LexicalEmbedder(**options)
    got = name if isinstance(name, str) else type(name).__name__
    raise InvalidOptionError(
        f"There is no embedder {got!r}. Use 'lexical', or an object with embed_pages, embed_queries, dim, fingerprint."
    )
