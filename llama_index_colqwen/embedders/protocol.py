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
    "page_words",
    "query_tokens",
    "recommended_candidate_vectors",
    "sees_images",
    "stream_pages",
]

_BATCH_PAGES = 16


@runtime_checkable
class MultiVectorEmbedder(Protocol):
    """Pages and queries -> multi-vectors that MaxSim compares.

    Any object with these members is an embedder; nothing needs to be inherited. One may also have

    - `candidate_vectors`, how many vectors of a page a Milvus server should search: a number, to which they are pooled,
      or "all";
    - `sees_images`, which is False for one that embeds the text of pages only;
    - `query_tokens(query) -> list[str]`, what each row of the query's multi-vector stands for, such as a word or a part
      of one, or "" for what is no word of it, such as what the model adds;
    - `page_words(page) -> list[list[int]]`, where rows of a page's multi-vector stand for words: for each row, its
      words as indexes into `page.text.split()`, or none of them.
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


def query_tokens(embedder: MultiVectorEmbedder, query: str, vectors: MultiVector) -> list[str] | None:
    """Return what each row of a query's multi-vector stands for, if the embedder has a `query_tokens`.

    Raises:
        ModelError: If it does not name as many as there are rows.
    """
    own = getattr(embedder, "query_tokens", None)
    if own is None:
        return None
    names: list[str] = own(query)
    if len(names) != len(vectors):
        raise ModelError(f"{embedder.fingerprint} names {len(names)} tokens of a query with {len(vectors)} vectors.")
    return names


def page_words(embedder: MultiVectorEmbedder, page: Page, vectors: MultiVector | None) -> list[list[int]] | None:
    """Return which words of its text each row of a page's multi-vector stands for, if the embedder has a `page_words`.

    Args:
        embedder: The embedder.
        page: The page.
        vectors: Its multi-vector, to compare the number of rows with, if it was embedded.

    Raises:
        ModelError: If it does not speak of as many rows as there are, or of words that there are not.
    """
    own = getattr(embedder, "page_words", None)
    if own is None:
        return None
    rows: list[list[int]] = own(page)
    number = len(page.text.split())
    stored = len(rows if vectors is None else vectors)
    if len(rows) != stored or not all(0 <= word < number for row in rows for word in row):
        raise ModelError(
            f"{embedder.fingerprint} says what {len(rows)} vectors of {page} stand for, by its {number} words, and "
            f"{stored} are stored."
        )
    return rows


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
