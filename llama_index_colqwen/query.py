"""A LlamaIndex query -> one multi-vector: of its words, or of an image that pages are to look like.

Knows nothing of pages that are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # not in its __all__
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent

from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder, sees_images
from llama_index_colqwen.embedders.recent import embed_queries
from llama_index_colqwen.errors import DocumentError, QueryError
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.pages import Page

if TYPE_CHECKING:
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.schema import QueryBundle

__all__ = ["embed_query", "model_details", "query_texts"]

_DISPATCHER = get_dispatcher(__name__)


def embed_query(embedder: MultiVectorEmbedder, query: QueryBundle, callback_manager: CallbackManager) -> MultiVector:
    """Embed all that a query has as one multi-vector: MaxSim sums over the tokens of each.

    Those are its `embedding_strs` (query transforms, HyDE say, put their texts there) and its `image_path`, which finds
    pages that look like it. LlamaIndex's embedding events are emitted, as its own embeddings do.

    Returns:
        float32, shape (num_tokens, dim).

    Raises:
        QueryError: If there are no words and no image, the image cannot be read, or the embedder knows words only.
    """
    texts, image = query_texts(query), query.image_path
    if not texts and image is None:
        way = "in words, or with an image" if sees_images(embedder) else "in words"
        raise QueryError(f"The query is empty: ask for something {way}.")
    if image is not None and not sees_images(embedder):
        raise QueryError(
            f"The query has an image, {image}, and {embedder.fingerprint.model} finds pages by their words only: ask "
            "in words, or use a visual embedder such as ColQwenEmbedder."
        )
    chunks = [*texts, *([Path(image).name] if image else [])]
    details = model_details(embedder)
    _DISPATCHER.event(EmbeddingStartEvent(model_dict=details))
    with callback_manager.event(CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: details}) as event:
        parts = embed_queries(embedder, texts) if texts else []
        if image is not None:
            parts.append(_embed_image(embedder, image))
        vectors: MultiVector = np.concatenate([np.asarray(part) for part in parts]).astype(np.float32, copy=False)
        event.on_end(payload={EventPayload.CHUNKS: chunks, EventPayload.EMBEDDINGS: vectors})
    _DISPATCHER.event(EmbeddingEndEvent(chunks=chunks, embeddings=vectors.tolist()))
    return vectors


def query_texts(query: QueryBundle) -> list[str]:
    """Return all that a query has in words; none of them is blank."""
    return [stripped for text in query.embedding_strs if (stripped := text.strip())]


def model_details(embedder: MultiVectorEmbedder) -> dict[str, Any]:
    """Describe an embedder to LlamaIndex's observers."""
    return {
        "class_name": type(embedder).__name__,
        "model_name": embedder.fingerprint.model,
        "dim": embedder.dim,
    }


def _embed_image(embedder: MultiVectorEmbedder, path: str) -> MultiVector:
    name = Path(path).name
    page = Page("query", "query", name, 1, "", image_path=path)
    try:
        pages: Sequence[MultiVector] = embedder.embed_pages([page])
    except DocumentError as error:
        raise QueryError(f"The query's image, {path}, cannot be read: {error}") from error
    return pages[0]
