"""Files -> pages."""

from llama_index_colqwen.reading.reader import MissingTextWarning, PDFPageReader, SkippedDocumentWarning

__all__ = ["MissingTextWarning", "PDFPageReader", "SkippedDocumentWarning"]
