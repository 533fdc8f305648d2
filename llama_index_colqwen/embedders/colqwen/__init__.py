"""Page images and queries -> multi-vectors, by ColQwen2 and its family."""

from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder

__all__ = ["ColQwenEmbedder"]
