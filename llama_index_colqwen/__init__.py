"""Ask questions of PDF pages as pictures, inside LlamaIndex.

Importing this package loads neither torch nor pymilvus.
"""

from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder
from llama_index_colqwen.embedders.lexical import LexicalEmbedder
from llama_index_colqwen.embedders.protocol import EmbedderFingerprint, MultiVectorEmbedder, resolve_embedder
from llama_index_colqwen.embedders.remote.embedder import EndpointEmbedder
from llama_index_colqwen.embedders.sentence_transformers import SentenceTransformersEmbedder
from llama_index_colqwen.errors import (
    CollectionNotFoundError,
    ColQwenError,
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
    QueryError,
    StoreError,
    StoreLockedError,
    UnreadableDocumentError,
    UnsupportedDocumentError,
)
from llama_index_colqwen.index import ColQwenIndex, IndexingReport
from llama_index_colqwen.nodes import word_boxes
from llama_index_colqwen.pages import MultiVector, Page, PageVectors, PatchGrid, WordBox
from llama_index_colqwen.reading.reader import MissingTextWarning, PDFPageReader, SkippedDocumentWarning
from llama_index_colqwen.retriever import ColQwenRetriever
from llama_index_colqwen.serving import EndpointHandler
from llama_index_colqwen.store.milvus_search import IgnoredParameterWarning
from llama_index_colqwen.store.page_store import MilvusPageStore
from llama_index_colqwen.store.schema import AnnIndex

__version__ = "0.1.0"

__all__ = [
    "AnnIndex",
    "CollectionNotFoundError",
    "ColQwenError",
    "ColQwenEmbedder",
    "ColQwenIndex",
    "ColQwenRetriever",
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
    "FingerprintMismatchError",
    "IgnoredParameterWarning",
    "IncompleteWeightsError",
    "IndexingReport",
    "InvalidOptionError",
    "LexicalEmbedder",
    "MilvusPageStore",
    "MissingDependencyError",
    "MissingTextWarning",
    "ModelError",
    "ModelNotFoundError",
    "MultiVector",
    "MultiVectorEmbedder",
    "PDFPageReader",
    "Page",
    "PageVectors",
    "PatchGrid",
    "QueryError",
    "SentenceTransformersEmbedder",
    "SkippedDocumentWarning",
    "StoreError",
    "StoreLockedError",
    "UnreadableDocumentError",
    "UnsupportedDocumentError",
    "WordBox",
    "resolve_embedder",
    "word_boxes",
]
