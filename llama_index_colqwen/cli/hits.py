"""Pages that were found -> what is printed of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

__all__ = ["rows_of"]


def rows_of(hits: Sequence[NodeWithScore]) -> list[dict[str, Any]]:
    """Say of each page where it is from, and where its image is."""
    return [
        {
            "rank": rank,
            "score": round(hit.get_score(), 4),
            "file_name": hit.metadata.get("file_name"),
            "page_number": hit.metadata.get("page_number"),
            "page_label": hit.metadata.get("page_label"),
            "image_path": getattr(hit.node, "image_path", None),
            "page_id": hit.node_id,
        }
        for rank, hit in enumerate(hits, start=1)
    ]
