"""Ask questions of PDF pages as pictures, inside LlamaIndex.

Names load when they are first asked for (PEP 562), so that importing the package takes no time, and neither torch nor
pymilvus nor LlamaIndex before they are needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_index_colqwen.answering import PagePromptHelper
    from llama_index_colqwen.crops import CropRegions
    from llama_index_colqwen.embedders.colqwen import ColQwenEmbedder
    from llama_index_colqwen.embedders.lexical import LexicalEmbedder
    from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder
    from llama_index_colqwen.embedders.remote import EndpointEmbedder
    from llama_index_colqwen.embedders.resolve import resolve_embedder
    from llama_index_colqwen.embedders.sentence_transformers import SentenceTransformersEmbedder
    from llama_index_colqwen.errors import (
        ClusterError,
        CollectionNotFoundError,
        ColQwenError,
        ConverterNotFoundError,
        DeviceMemoryError,
        DimensionMismatchError,
        DocumentError,
        DocumentNotFoundError,
        EncryptedDocumentError,
        EndpointError,
        EndpointUnavailableError,
        FingerprintMismatchError,
        IncompleteWeightsError,
        InvalidOptionError,
        MissingDependencyError,
        ModelError,
        ModelNotFoundError,
        NoPageImageError,
        QueryError,
        StoreError,
        StoreLockedError,
        UnreadableDocumentError,
        UnsupportedDocumentError,
    )
    from llama_index_colqwen.explain.explanation import Explanation
    from llama_index_colqwen.explain.gallery import show_pages
    from llama_index_colqwen.explain.regions import Region
    from llama_index_colqwen.explain.similarities import TokenMatch
    from llama_index_colqwen.fingerprint import EmbedderFingerprint
    from llama_index_colqwen.index import ColQwenIndex
    from llama_index_colqwen.indexing import IndexingReport
    from llama_index_colqwen.integrations.langchain import ColQwenLangChainRetriever as ColQwenLangChainRetriever
    from llama_index_colqwen.integrations.ray import RayEmbedder
    from llama_index_colqwen.late_interaction.maxsim import Candidate
    from llama_index_colqwen.late_interaction.multivectors import MultiVector, PageVectors, PatchGrid
    from llama_index_colqwen.nodes import PageNode, PageWithScore, word_boxes
    from llama_index_colqwen.pages import Page, WordBox
    from llama_index_colqwen.reading.reader import MissingTextWarning, PDFPageReader, SkippedDocumentWarning
    from llama_index_colqwen.rerank import MaxSimRerank
    from llama_index_colqwen.resize import ResizeForLLM
    from llama_index_colqwen.retriever import ColQwenRetriever
    from llama_index_colqwen.search_tool import PageSearchTool
    from llama_index_colqwen.serving.handler import EndpointHandler
    from llama_index_colqwen.store.milvus_search import IgnoredParameterWarning
    from llama_index_colqwen.store.page_store import MilvusPageStore, StoreCheck, StoredDocument, StoredState
    from llama_index_colqwen.store.schema import AnnIndex
    from llama_index_colqwen.vector_store import ColQwenVectorStore

__version__ = "0.1.0"

_MODULES = {
    "answering": ["PagePromptHelper"],
    "crops": ["CropRegions"],
    "embedders.colqwen": ["ColQwenEmbedder"],
    "embedders.lexical": ["LexicalEmbedder"],
    "embedders.protocol": ["MultiVectorEmbedder"],
    "embedders.remote": ["EndpointEmbedder"],
    "embedders.resolve": ["resolve_embedder"],
    "embedders.sentence_transformers": ["SentenceTransformersEmbedder"],
    "errors": [
        "ClusterError",
        "CollectionNotFoundError",
        "ColQwenError",
        "ConverterNotFoundError",
        "DeviceMemoryError",
        "DimensionMismatchError",
        "DocumentError",
        "DocumentNotFoundError",
        "EncryptedDocumentError",
        "EndpointError",
        "EndpointUnavailableError",
        "FingerprintMismatchError",
        "IncompleteWeightsError",
        "InvalidOptionError",
        "MissingDependencyError",
        "ModelError",
        "ModelNotFoundError",
        "NoPageImageError",
        "QueryError",
        "StoreError",
        "StoreLockedError",
        "UnreadableDocumentError",
        "UnsupportedDocumentError",
    ],
    "explain.explanation": ["Explanation"],
    "explain.gallery": ["show_pages"],
    "explain.regions": ["Region"],
    "explain.similarities": ["TokenMatch"],
    "fingerprint": ["EmbedderFingerprint"],
    "index": ["ColQwenIndex"],
    "indexing": ["IndexingReport"],
    "integrations.langchain": ["ColQwenLangChainRetriever"],
    "integrations.ray": ["RayEmbedder"],
    "late_interaction.maxsim": ["Candidate"],
    "late_interaction.multivectors": ["MultiVector", "PageVectors", "PatchGrid"],
    "nodes": ["PageNode", "PageWithScore", "word_boxes"],
    "pages": ["Page", "WordBox"],
    "reading.reader": ["MissingTextWarning", "PDFPageReader", "SkippedDocumentWarning"],
    "rerank": ["MaxSimRerank"],
    "resize": ["ResizeForLLM"],
    "retriever": ["ColQwenRetriever"],
    "search_tool": ["PageSearchTool"],
    "serving.handler": ["EndpointHandler"],
    "store.milvus_search": ["IgnoredParameterWarning"],
    "store.page_store": ["MilvusPageStore", "StoreCheck", "StoredDocument", "StoredState"],
    "store.schema": ["AnnIndex"],
    "vector_store": ["ColQwenVectorStore"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

# Spelled out, and not made of _MODULES: type checkers and editors read it. What needs an extra to be imported is left
# out: without the extra, `from llama_index_colqwen import *` would fail.
__all__ = [
    "AnnIndex",
    "Candidate",
    "ClusterError",
    "CollectionNotFoundError",
    "ColQwenError",
    "ColQwenEmbedder",
    "ColQwenIndex",
    "ColQwenRetriever",
    "ColQwenVectorStore",
    "ConverterNotFoundError",
    "CropRegions",
    "DeviceMemoryError",
    "DimensionMismatchError",
    "DocumentError",
    "DocumentNotFoundError",
    "EmbedderFingerprint",
    "EncryptedDocumentError",
    "EndpointEmbedder",
    "EndpointError",
    "EndpointHandler",
    "EndpointUnavailableError",
    "Explanation",
    "FingerprintMismatchError",
    "IgnoredParameterWarning",
    "IncompleteWeightsError",
    "IndexingReport",
    "InvalidOptionError",
    "LexicalEmbedder",
    "MaxSimRerank",
    "MilvusPageStore",
    "MissingDependencyError",
    "MissingTextWarning",
    "ModelError",
    "ModelNotFoundError",
    "MultiVector",
    "MultiVectorEmbedder",
    "NoPageImageError",
    "PDFPageReader",
    "Page",
    "PageNode",
    "PagePromptHelper",
    "PageSearchTool",
    "PageVectors",
    "PageWithScore",
    "PatchGrid",
    "QueryError",
    "RayEmbedder",
    "Region",
    "ResizeForLLM",
    "SentenceTransformersEmbedder",
    "SkippedDocumentWarning",
    "StoreCheck",
    "StoreError",
    "StoreLockedError",
    "StoredDocument",
    "StoredState",
    "TokenMatch",
    "UnreadableDocumentError",
    "UnsupportedDocumentError",
    "WordBox",
    "resolve_embedder",
    "show_pages",
    "word_boxes",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
