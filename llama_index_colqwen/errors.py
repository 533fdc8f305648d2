"""What can go wrong, as one tree of errors.

    ColQwenError
    ├── MissingDependencyError      (ImportError)        an extra is not installed
    ├── InvalidOptionError          (ValueError)         an argument no component understands
    │   └── NoPageImageError                             a document without an image of a page
    ├── DocumentError               (ValueError)
    │   ├── DocumentNotFoundError   (FileNotFoundError)  no such file, or a folder with nothing to read
    │   ├── UnsupportedDocumentError                     a file type that is not read
    │   ├── EncryptedDocumentError                       a password is missing or wrong
    │   ├── ConverterNotFoundError                       an office document, and no LibreOffice
    │   └── UnreadableDocumentError                      truncated, corrupt, empty, too large, or too slow to draw
    ├── QueryError                  (ValueError)         an empty query, or one the embedder cannot read
    ├── DimensionMismatchError      (ValueError)         multi-vectors of two dims
    ├── ModelError                  (RuntimeError)       a model cannot be loaded, or computes nonsense
    │   ├── ModelNotFoundError      (FileNotFoundError)  no such model on this machine or the hub, or no network
    │   ├── IncompleteWeightsError  (ValueError)         weights are lost, or were never trained
    │   └── DeviceMemoryError       (MemoryError)        the model, or a single page, does not fit the device
    ├── ClusterError                (RuntimeError)       a Ray cluster cannot be used, or has no room for an actor
    ├── EndpointError           (RuntimeError)       a service refuses, fails, or answers something else
    │   └── EndpointUnavailableError (ConnectionError) it cannot be reached, or stays busy
    └── StoreError                  (RuntimeError)
        ├── CollectionNotFoundError (LookupError)        nothing is indexed there
        ├── FingerprintMismatchError                     another embedder made the collection
        └── StoreLockedError                             another process holds the Milvus Lite file

Every error is also the builtin in brackets, so that existing handlers keep working.
"""

from __future__ import annotations

import textwrap

__all__ = [
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
    "check_count",
    "in_one_line",
]


class ColQwenError(Exception):
    """The root: catch it to catch everything this package raises on purpose."""


class MissingDependencyError(ColQwenError, ImportError):
    """An optional package is needed; the message has the line that installs it."""

    def __init__(self, need: str, extra: str, install: str = "") -> None:
        """Say what needs the extra, and what installs it: the extra itself, unless `install` is given."""
        what = install or f"'llama-index-colqwen[{extra}]'"
        super().__init__(f"{need}. Install it with: pip install {what}")
        self.extra = extra

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the message alone, so that worker processes can pass the error on."""
        return _rebuild_missing_dependency, (str(self), self.extra)


def _rebuild_missing_dependency(message: str, extra: str) -> MissingDependencyError:
    error = MissingDependencyError.__new__(MissingDependencyError)
    ImportError.__init__(error, message)
    error.extra = extra
    return error


class InvalidOptionError(ColQwenError, ValueError):
    """An argument has a value that no component understands."""


class NoPageImageError(InvalidOptionError):
    """A document to be indexed has no page image, on disk or inline."""


def check_count(name: str, value: int) -> int:
    """Return an option that is a whole number, at least 1.

    Raises:
        InvalidOptionError: If it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOptionError(f"{name} is a whole number, at least 1; got {value!r}.")
    return value


def in_one_line(error: BaseException) -> str:
    """Return what another library says, for a sentence of ours: without line ends, and no more than is read."""
    return textwrap.shorten(str(error), 300, placeholder=" ...")


class DocumentError(ColQwenError, ValueError):
    """A file cannot become pages; the message starts with its name, or its path within the folder that was given."""


class _Sentence(Exception):
    """OSError formats itself from errno; the sentence is all there is here."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DocumentNotFoundError(_Sentence, DocumentError, FileNotFoundError):
    """There is no such file, or nothing readable in the folder."""


class UnsupportedDocumentError(DocumentError):
    """The file's type is not one that is read."""


class EncryptedDocumentError(DocumentError):
    """The document is encrypted, and the password is missing or wrong; office documents are not decrypted at all."""


class ConverterNotFoundError(DocumentError):
    """The file is read through LibreOffice, which is not installed."""


class UnreadableDocumentError(DocumentError):
    """The file is truncated, corrupt, empty, too large to decode, or not what its name says."""


class QueryError(ColQwenError, ValueError):
    """The query is empty, or holds nothing that the embedder can read."""


class DimensionMismatchError(ColQwenError, ValueError):
    """Two multi-vectors, or a multi-vector and a collection, have different dims."""


class ModelError(ColQwenError, RuntimeError):
    """A model cannot be loaded or run; the message names it and the next step."""


class ModelNotFoundError(_Sentence, ModelError, FileNotFoundError):
    """The model is not on this machine, and the hub has no such model or cannot be reached."""


class IncompleteWeightsError(ModelError, ValueError):
    """Weights are missing, left over, or untrained: the model would rank pages at random."""


class DeviceMemoryError(ModelError, MemoryError):
    """The model, or the forward pass of a single page, does not fit the device's memory."""


class ClusterError(ColQwenError, RuntimeError):
    """A Ray cluster cannot be reached or used, has no room for an actor, or an actor there cannot make its embedder."""


class EndpointError(ColQwenError, RuntimeError):
    """A service that embeds, or a chat model's, refuses or fails, or is none; the message names its address."""


class EndpointUnavailableError(_Sentence, EndpointError, ConnectionError):
    """The service cannot be reached or stays busy, after all retries."""


class StoreError(ColQwenError, RuntimeError):
    """Milvus refused or failed; the message names the collection and the next step."""


class CollectionNotFoundError(StoreError, LookupError):
    """The collection does not exist: nothing has been indexed there."""


class FingerprintMismatchError(StoreError):
    """The collection was made by another embedder; scores across embedders mean nothing."""


class StoreLockedError(StoreError):
    """Another process holds the Milvus Lite file."""
