"""A corpus and an embedder -> the database that keeps its pages, so that an evaluation that was interrupted goes on.

Knows nothing of what is in it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder
from llama_index_colqwen.fingerprint import fingerprint_digest

__all__ = ["database_path"]


def database_path(folder: Path, name: str, corpus: str, embedder: MultiVectorEmbedder) -> Path:
    """Name the database of a corpus and an embedder: the same one each time, and no other's.

    Args:
        folder: Where it is.
        name: For people.
        corpus: What tells the corpus from others.
        embedder: What embeds it.
    """
    made_by = embedder.fingerprint
    told_apart = f"{corpus}\n{fingerprint_digest(made_by)}"
    digest = hashlib.sha256(told_apart.encode("utf-8", "surrogatepass")).hexdigest()
    readable = re.sub(r"[^\w.-]+", "-", f"{name}-{made_by.model}")[:80].strip("-.")
    return folder / f"{readable}-{digest[:12]}.db"
