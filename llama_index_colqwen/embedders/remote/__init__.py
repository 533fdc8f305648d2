"""Page images and queries -> multi-vectors, by a model elsewhere."""

from llama_index_colqwen.embedders.remote.embedder import EndpointEmbedder

__all__ = ["EndpointEmbedder"]
