"""What every embedder is: pages, queries -> multi-vectors.

Knows nothing of any one embedder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

from llama_index_colqwen.concurrency import gather
from llama_index_colqwen.errors import ModelError
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.pages import Page

__all__ = [
    "MultiVectorEmbedder",
    "recommended_candidate_vectors",
    "sees_images",
    "stream_pages",
]

_BATCH_PAGES = 16


@runtime_checkable
class MultiVectorEmbedder(Protocol):
    """Pages and queries -> multi-vectors that MaxSim compares.

    Any object with these members is an embedder; nothing needs to be inherited. One may also have `candidate_vectors`,
    how many vectors of a page a Milvus server should search: a number, to which they are pooled, or "all"; and
    `sees_images`, which is False for one that embeds the text of pages only.
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


def recommended_candidate_vectors(embedder: MultiVectorEmbedder) -> int | Literal["all"] | None:
    """Return how many vectors of a page a Milvus server should search, if the embedder has a `candidate_vectors`."""
    number: int | Literal["all"] | None = getattr(embedder, "candidate_vectors", None)
    return number


def sees_images(embedder: MultiVectorEmbedder) -> bool:
    """Say whether an embedder looks at page images, and so can be asked with one; without `sees_images`, it does."""
    return bool(getattr(embedder, "sees_images", True))


def stream_pages(embedder: MultiVectorEmbedder, pages: Iterable[Page]) -> Iterator[tuple[Page, MultiVector]]:
    """Embed pages as they come, each once, in any order; memory is bounded.

    Embedders that work ahead have a method `stream_pages` of their own; the others are given 16 pages at a time.
    """
    own = getattr(embedder, "stream_pages", None)
    if own is not None:
        yield from own(pages)
        return
    for batch in gather(pages, _BATCH_PAGES):
        vectors = embedder.embed_pages(batch)
        if len(vectors) != len(batch):
            raise ModelError(f"{embedder.fingerprint} gave {len(vectors)} multi-vectors for {len(batch)} pages.")
        yield from zip(batch, vectors, strict=True)
