"""A small embedder for tests: of plugins, and of applications that use this package.

No weights, no network; vectors are known beforehand. Knows nothing of images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from llama_index_colqwen.errors import QueryError, check_count
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.pages import Page

__all__ = ["FakeEmbedder"]


class FakeEmbedder:
    """Embed the text of pages: a unit vector a word, the same for the same word; or vectors of your own by text.

    Attributes:
        embedded: The texts of the pages that were embedded, in order: what was stored already is not among them.

    Args:
        vectors: Multi-vectors by text, each float32, shape (num_tokens, dim), unit rows; other texts are an error then.
        dim: Length of a vector.
        name: The fingerprint's model: embedders of different names cannot open each other's collections.

    >>> FakeEmbedder(dim=4).embed_queries(["red chart"])[0].shape
    (2, 4)
    """

    sees_images = False

    def __init__(self, vectors: Mapping[str, MultiVector] | None = None, dim: int = 32, name: str = "fake") -> None:
        """See the class."""
        self.vectors = vectors
        self.dim = check_count("dim", dim)
        self.fingerprint = EmbedderFingerprint(name, "1", dim)
        self.embedded: list[str] = []

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        """Embed the pages' texts; a page without words gets one vector, of the empty word."""
        self.embedded.extend(page.text for page in pages)
        return [self._embed(page.text) for page in pages]

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        """Embed queries as pages are.

        Raises:
            QueryError: If a query is blank, or not among `vectors`.
        """
        for query in queries:
            if not query.strip() or (self.vectors is not None and query not in self.vectors):
                raise QueryError(f"The query {query!r} is blank, or not among the vectors.")
        return [self._embed(query) for query in queries]

    def _embed(self, text: str) -> MultiVector:
        if self.vectors is not None:
            return self.vectors[text]
        return np.stack([self._word(word) for word in dict.fromkeys(text.lower().split() or [""])])

    def _word(self, word: str) -> MultiVector:
        seed = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        vector = np.random.default_rng(seed).normal(size=self.dim)
        unit: MultiVector = (vector / np.linalg.norm(vector)).astype(np.float32)
        return unit
