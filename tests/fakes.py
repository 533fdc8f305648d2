"""Small real parts for tests: pages without files, and an embedder whose vectors are known by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from llama_index.core.schema import ImageNode

from llama_index_colqwen import EmbedderFingerprint, MultiVector, Page, QueryError

# 1 x 1 pixel, white: the smallest image that opens.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63f80f0001010100"
    "1b b6ee56 0000000049454e44ae426082".replace(" ", "")
)


def make_page(page_id: str, text: str = "", document_id: str = "document", number: int = 1, **metadata: object) -> Page:
    """Make a page as the store sees it."""
    node = ImageNode(id_=page_id, text=text, metadata={"file_name": f"{document_id}.pdf", **metadata})
    return Page(
        page_id=page_id,
        document_id=document_id,
        file_name=f"{document_id}.pdf",
        page_number=number,
        text=text,
        content_hash=hashlib.sha256(text.encode()).hexdigest(),
        node=node.to_dict(),
    )


def unit_rows(seed: int, rows: int, dim: int = 4) -> MultiVector:
    """Draw random unit vectors."""
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    normal: MultiVector = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normal


class TableEmbedder:
    """Looks vectors up by text; counts the pages it embedded."""

    def __init__(self, table: Mapping[str, MultiVector], dim: int = 4, name: str = "table") -> None:
        self.table = table
        self.dim = dim
        self.fingerprint = EmbedderFingerprint(name, "1", dim)
        self.embedded: list[str] = []

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        """Look the pages' texts up."""
        self.embedded.extend(page.text for page in pages)
        return [self.table[page.text] for page in pages]

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        """Look the queries up."""
        if unknown := [query for query in queries if query not in self.table]:
            raise QueryError(f"not in the table: {unknown}")
        return [self.table[query] for query in queries]
