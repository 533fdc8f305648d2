"""What every embedder is, and how one is chosen by name.

Knows nothing of any one embedder until it is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from llama_index_colqwen.concurrency import gather
from llama_index_colqwen.errors import InvalidOptionError
from llama_index_colqwen.pages import MultiVector, Page

__all__ = [
    "EmbedderFingerprint",
    "MultiVectorEmbedder",
    "fingerprint_digest",
    "recommended_candidate_vectors",
    "resolve_embedder",
    "stream_pages",
]

_BATCH_PAGES = 16
_ADDRESSES = ("http://", "https://")


@dataclass(frozen=True)
class EmbedderFingerprint:
    """Everything that decides what an embedder's vectors mean; vectors of equal fingerprints can be compared.

    Attributes:
        model: The model's name on the hub, or for one that is not there what kind it is.
        revision: The weights' (or the method's) version.
        dim: Length of each vector.
        options: Whatever else changes the vectors, such as a query prefix or token pooling.
        location: The folder that the model was loaded from, for one that is not on the hub, or the address of the
            service that has it; not compared, so that an index and a model can move.
    """

    model: str
    revision: str
    dim: int
    options: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    location: str = field(default="", compare=False)

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
        where = f" in {self.location}" if self.location else ""
        return f"{self.model}{where} (revision {self.revision}, {self.dim}-dim{options})"


def fingerprint_digest(fingerprint: EmbedderFingerprint) -> str:
    """Return a short name of what a fingerprint compares by: equal fingerprints have equal ones."""
    return hashlib.sha256(replace(fingerprint, location="").to_json().encode()).hexdigest()[:16]


@runtime_checkable
class MultiVectorEmbedder(Protocol):
    """Pages and queries -> multi-vectors that MaxSim compares.

    Any object with these members is an embedder; nothing needs to be inherited. One may also have `candidate_vectors`,
    how many vectors of a page a Milvus server should search: a number, to which they are pooled, or "all".
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

    Args:
        embedder: "lexical"; a visual model's hub id (such as "vidore/colqwen2-v1.0") or folder; the address of a
            service (such as "https://gpu.example.com"); a fingerprint; or any object with the members of
            `MultiVectorEmbedder`.

    Raises:
        InvalidOptionError: If there is no embedder of that name, or the object is not an embedder.
        ModelError: If the model cannot be loaded.
        EndpointError: If the service cannot be reached, or refuses.
        MissingDependencyError: If it needs an extra that is not installed.
    """
    if isinstance(embedder, EmbedderFingerprint):
        return _from_fingerprint(embedder)
    if isinstance(embedder, MultiVectorEmbedder):
        return embedder
    if embedder == "lexical":
        from llama_index_colqwen.embedders.lexical import LexicalEmbedder

        return LexicalEmbedder()
    if isinstance(embedder, str) and embedder.startswith(_ADDRESSES):
        from llama_index_colqwen.embedders.remote.embedder import EndpointEmbedder

        return EndpointEmbedder(embedder)
    if isinstance(embedder, (str, Path)) and ("/" in str(embedder) or Path(embedder).is_dir()):
        from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder

        return ColQwenEmbedder(embedder)
    raise _no_embedder(embedder if isinstance(embedder, str) else type(embedder).__name__)


def _from_fingerprint(fingerprint: EmbedderFingerprint) -> MultiVectorEmbedder:
    if fingerprint.location.startswith(_ADDRESSES):
        # Not connected to unasked: the collection may be a stranger's, and so the address and who listens there.
        raise InvalidOptionError(
            f"The collection was made with the model at {fingerprint.location} ({fingerprint.model}): give "
            f"embedder={fingerprint.location!r}, if you trust that address, or EndpointEmbedder with its token."
        )
    library = fingerprint.options.get("library")
    if library == "colpali-engine":
        from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder

        return ColQwenEmbedder.from_fingerprint(fingerprint)
    if library == "sentence-transformers":
        from llama_index_colqwen.embedders.sentence_transformers import SentenceTransformersEmbedder

        return SentenceTransformersEmbedder.from_fingerprint(fingerprint)
    if library is None and fingerprint.model == "lexical":
        from llama_index_colqwen.embedders.lexical import LexicalEmbedder

        options: Mapping[str, Any] = fingerprint.options
        return LexicalEmbedder(**options)
    raise _no_embedder(fingerprint.model)


def _no_embedder(name: str) -> InvalidOptionError:
    return InvalidOptionError(
        f"There is no embedder {name!r}. Use 'lexical', a model's hub id (such as 'vidore/colqwen2-v1.0') or folder, "
        "a service's address, or an object with embed_pages, embed_queries, dim, fingerprint."
    )


def recommended_candidate_vectors(embedder: MultiVectorEmbedder) -> int | Literal["all"] | None:
    """Return how many vectors of a page a Milvus server should search, if the embedder has a `candidate_vectors`."""
    number: int | Literal["all"] | None = getattr(embedder, "candidate_vectors", None)
    return number


def stream_pages(embedder: MultiVectorEmbedder, pages: Iterable[Page]) -> Iterator[tuple[Page, MultiVector]]:
    """Embed pages as they come, each once, in any order; memory is bounded.

    Embedders that work ahead have a method `stream_pages` of their own; the others are given 16 pages at a time.
    """
    own = getattr(embedder, "stream_pages", None)
    if own is not None:
        yield from own(pages)
        return
    for batch in gather(pages, _BATCH_PAGES):
        yield from zip(batch, embedder.embed_pages(batch), strict=True)
