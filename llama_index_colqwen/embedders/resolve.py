"""A name, or a collection's fingerprint -> the embedder that it means.

Imports an embedder's module only when that embedder is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder
from llama_index_colqwen.errors import InvalidOptionError
from llama_index_colqwen.fingerprint import EmbedderFingerprint

__all__ = ["resolve_embedder"]

_ADDRESSES = ("http://", "https://")
_POOLING = "/pooling"


def resolve_embedder(embedder: str | EmbedderFingerprint | MultiVectorEmbedder) -> MultiVectorEmbedder:
    """Return the embedder of a name, the one that a collection's fingerprint describes, or the embedder itself.

    Args:
        embedder: "lexical"; a visual model's hub id (such as "vidore/colqwen2-v1.0") or folder; the address of a
            service (such as "https://gpu.example.com", or "http://gpu:8000/pooling" for one that answers as vLLM's); a
            fingerprint; or any object with the members of `MultiVectorEmbedder`.

    Raises:
        InvalidOptionError: If there is no embedder of that name, or the object is not an embedder.
        ModelError: If the model cannot be loaded.
        EndpointError: If the service cannot be reached, or refuses.
        MissingDependencyError: If it needs an extra that is not installed.
    """
    if isinstance(embedder, EmbedderFingerprint):
        return _from_fingerprint(embedder)
    if isinstance(embedder, MultiVectorEmbedder):
        fingerprint = embedder.fingerprint
        if not isinstance(fingerprint, EmbedderFingerprint) or fingerprint.dim != embedder.dim:
            raise InvalidOptionError(
                f"The fingerprint of {type(embedder).__name__} is an EmbedderFingerprint with the embedder's dim, "
                f"{embedder.dim}; got {fingerprint!r}."
            )
        return embedder
    if embedder == "lexical":
        from llama_index_colqwen.embedders.lexical import LexicalEmbedder

        return LexicalEmbedder()
    if isinstance(embedder, str) and embedder.startswith(_ADDRESSES):
        from llama_index_colqwen.embedders.remote.embedder import EndpointEmbedder

        address = embedder.rstrip("/")
        if address.endswith(_POOLING):
            return EndpointEmbedder(address.removesuffix(_POOLING), api="pooling")
        return EndpointEmbedder(address)
    if isinstance(embedder, (str, Path)) and ("/" in str(embedder) or Path(embedder).is_dir()):
        from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder

        return ColQwenEmbedder(embedder)
    raise _no_embedder(embedder if isinstance(embedder, str) else type(embedder).__name__)


def _from_fingerprint(fingerprint: EmbedderFingerprint) -> MultiVectorEmbedder:
    if fingerprint.location.startswith(_ADDRESSES):
        # Not connected to without being asked: the collection, and so the address in it, may come from anyone.
        address = fingerprint.location + _POOLING * (fingerprint.options.get("api") == "pooling")
        raise InvalidOptionError(
            f"The collection was made with the model at {fingerprint.location} ({fingerprint.model}): give "
            f"embedder={address!r}, if you trust that address, or EndpointEmbedder with its token."
        )
    library = fingerprint.options.get("library")
    if library == "colpali-engine":
        from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder

        return ColQwenEmbedder.from_fingerprint(fingerprint)
    if library == "sentence-transformers":
        from llama_index_colqwen.embedders.sentence_transformers import SentenceTransformersEmbedder

        return SentenceTransformersEmbedder.from_fingerprint(fingerprint)
    if library is None and fingerprint.model == "lexical":
        from llama_index_colqwen.embedders.lexical import LexicalEmbedder

        options: Mapping[str, Any] = fingerprint.options
        return LexicalEmbedder(**options)
    raise _no_embedder(fingerprint.model)


def _no_embedder(name: str) -> InvalidOptionError:
    return InvalidOptionError(
        f"There is no embedder {name!r}. Use 'lexical', a model's hub id (such as 'vidore/colqwen2-v1.0') or folder, "
        "a service's address, or an object with embed_pages, embed_queries, dim, fingerprint."
    )
