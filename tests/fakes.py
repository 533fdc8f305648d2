"""Small real parts for tests: pages without files, unit vectors, and what is done with both in a store.

Nothing here imports LlamaIndex, which takes more than a second in each process that tests start.
"""

from __future__ import annotations

import hashlib

import numpy as np

from llama_index_colqwen import Candidate, EmbedderFingerprint, MilvusPageStore, MultiVector, Page

FINGERPRINT = EmbedderFingerprint("table", "1", 4, {"prefix": "Query: "})

# 1 x 1 pixel, white: the smallest image that opens.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63f80f0001010100"
    "1b b6ee56 0000000049454e44ae426082".replace(" ", "")
)


def make_page(page_id: str, text: str = "", document_id: str = "document", number: int = 1, **metadata: object) -> Page:
    """Make a page as the store sees it."""
    return Page(
        page_id=page_id,
        document_id=document_id,
        file_name=f"{document_id}.pdf",
        page_number=number,
        text=text,
        content_hash=hashlib.sha256(text.encode()).hexdigest(),
        node={  # which LlamaIndex reads with its defaults
            "class_name": "ImageNode",
            "id_": page_id,
            "text": text,
            "metadata": {"file_name": f"{document_id}.pdf", **metadata},
        },
    )


def unit_rows(seed: int, rows: int, dim: int = 4) -> MultiVector:
    """Draw random unit vectors."""
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    normal: MultiVector = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normal


def add(store: MilvusPageStore, *pages: Page, rows: int = 3) -> list[MultiVector]:
    """Store pages, each with one vector more than the one before."""
    vectors = [unit_rows(number, rows + number) for number, _ in enumerate(pages)]
    store.add(pages, vectors)
    return vectors


def everything(store: MilvusPageStore) -> list[Candidate]:
    """All pages with their vectors, by id."""
    candidates = store.candidates(unit_rows(0, 1, store.fingerprint().dim), exact=True)
    return sorted(candidates, key=lambda candidate: candidate.page_id)
