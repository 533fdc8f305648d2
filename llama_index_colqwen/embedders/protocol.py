"""What every embedder is: pages, queries -> multi-vectors.

Knows nothing of any one embedder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from llama_index_colqwen.concurrency import gather
from llama_index_colqwen.errors import ModelError
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.maxsim import Scorer, maxsim_scores
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.pages import Page

__all__ = [
    "MultiVectorEmbedder",
    "highest_score",
    "normalized",
    "page_words",
    "query_tokens",
    "recommended_candidate_vectors",
    "scorer",
    "seen_by",
    "sees_images",
    "stream_pages",
]

_BATCH_PAGES = 16

# Of hashes in hex: with the dash, the 64 characters that the store keeps.
_CONTENT_DIGITS, _CONTEXT_DIGITS = 47, 16


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
      words as indexes into `page.text.split()`, or none of them;
    - `page_context(page) -> str`, all that it reads of a page besides image and text, such as the file's name: a page
      is embedded again when that changes;
    - `highest_score(query) -> float`, what no page's MaxSim exceeds, where not all vectors of a query count the same;
    - `maxsim_scores(query, pages)`, which scores as `late_interaction.maxsim.maxsim_scores` does, on a GPU say.
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

        Rows of a query need not be unit, as with small encoders of text that were trained for another model's pages: a
        row counts in MaxSim by its length, in every stage of a search. A normalized score is divided by the sum of the
        lengths, so that 1 stays the most. Rows of pages are unit: MaxSim would be right for others, too, which are kept
        with their lengths, but the first stage of a large collection does not see them.

        Raises:
            QueryError: If a query is blank or holds nothing that the embedder can read.
        """


def recommended_candidate_vectors(embedder: MultiVectorEmbedder) -> int | Literal["all"] | None:
    """Return how many vectors of a page a Milvus server should search, if the embedder has a `candidate_vectors`."""
    number: int | Literal["all"] | None = getattr(embedder, "candidate_vectors", None)
    return number


def highest_score(embedder: MultiVectorEmbedder, query: MultiVector) -> float:
    """Return the most that a page can score for a query, above 0: the sum of its rows' lengths, or the embedder's own.

    The sum is the number of rows where they are unit.

    Args:
        embedder: The one that made the query.
        query: Float32, shape (num_query_tokens, dim).
    """
    own = getattr(embedder, "highest_score", None)
    if own is not None:
        return float(own(query))
    return float(np.linalg.norm(query.astype(np.float64), axis=1).sum()) or float(len(query))


def scorer(embedder: MultiVectorEmbedder) -> Scorer:
    """Return what scores pages by MaxSim: the embedder's `maxsim_scores`, if it has one, or numpy's."""
    own: Scorer | None = getattr(embedder, "maxsim_scores", None)
    return maxsim_scores if own is None else own


def normalized(embedder: MultiVectorEmbedder, query: MultiVector, score: float) -> float:
    """Divide a page's MaxSim by the most that it can be for the query; in [-1, 1]."""
    # A page without words is further from a query of light words than any of its words can be near.
    return max(-1.0, score / highest_score(embedder, query))


def seen_by(embedder: MultiVectorEmbedder, page: Page) -> Page:
    """Return the page with a `content_hash` that changes whenever the embedder would make other vectors of it.

    That is the hash of image and text, which is all that most embedders see, or one with the `page_context` in it.
    """
    context = getattr(embedder, "page_context", None)
    if context is None:
        return page
    digest = hashlib.sha256(context(page).encode("utf-8", "surrogatepass")).hexdigest()
    # In the place of an earlier context's, of which the first part is free: a stored page can be given another context.
    content = page.content_hash.partition("-")[0][:_CONTENT_DIGITS]
    return replace(page, content_hash=f"{content}-{digest[:_CONTEXT_DIGITS]}")


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
