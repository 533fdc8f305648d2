"""Files -> pages."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_index_colqwen.reading.reader import MissingTextWarning, PDFPageReader, SkippedDocumentWarning

__all__ = ["MissingTextWarning", "PDFPageReader", "SkippedDocumentWarning"]


def __getattr__(name: str) -> object:
    # Not imported above: processes that draw pages load other modules of this room, and not LlamaIndex.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.reader"), name)
