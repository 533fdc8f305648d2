"""Small real parts for tests: pages without files, and unit vectors."""

from __future__ import annotations

import hashlib

import numpy as np

from llama_index_colqwen import MultiVector, Page

# 1 x 1 pixel, white: the smallest image that opens.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63f80f0001010100"
    "1b b6ee56 0000000049454e44ae426082".replace(" ", "")
)


def make_page(page_id: str, text: str = "", document_id: str = "document", number: int = 1, **metadata: object) -> Page:
    """Make a page as the store sees it."""
    # Two seconds, which processes that only want vectors do not need.
    from llama_index.core.schema import ImageNode

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
