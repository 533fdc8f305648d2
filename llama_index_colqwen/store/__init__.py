"""Pages and their multi-vectors <-> Milvus."""

from llama_index_colqwen.store.page_store import MilvusPageStore, StoreCheck, StoredDocument, StoredState

__all__ = ["MilvusPageStore", "StoreCheck", "StoredDocument", "StoredState"]
