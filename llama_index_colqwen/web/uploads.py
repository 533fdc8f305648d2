"""Files that were sent -> pages in the index, one file at a time.

Files are kept in a folder, by their names, so that they can be refreshed like any others. Knows nothing of HTTP.
"""

from __future__ import annotations

import filecmp
import logging
import re
import threading
import unicodedata
import uuid
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, Literal

from llama_index.core.schema import Document

from llama_index_colqwen.errors import ColQwenError, UnreadableDocumentError, UnsupportedDocumentError, in_one_line
from llama_index_colqwen.index import ColQwenIndex
from llama_index_colqwen.indexing import IndexingReport
from llama_index_colqwen.reading.office import OFFICE_SUFFIXES
from llama_index_colqwen.reading.reader import MissingTextWarning, PDFPageReader, SkippedDocumentWarning
from llama_index_colqwen.reading.rendering import SUPPORTED_SUFFIXES, expected_pages
from llama_index_colqwen.shared_index import SharedIndex, without_folders

__all__ = ["NEW_EMBEDDER", "Upload", "Uploads", "safe_name"]

_LOGGER = logging.getLogger(__name__)

NEW_EMBEDDER = "lexical"
"""What a collection is made with that an upload begins."""

_NAME_BYTES = 180  # file systems take 255 of a name; ours is written with more around it
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # on Windows
_REMEMBERED = 50


def safe_name(name: str) -> str:
    """Return a name that any file system takes, of a file whose type is read, and no path.

    Raises:
        UnsupportedDocumentError: If files of this type are not read.

    >>> safe_name("../reports/<b>2024</b>: Q1.PDF")
    'b_ Q1.PDF'
    """
    last = PurePath(unicodedata.normalize("NFC", name).replace("\\", "/")).name
    kept = "".join("_" if one in '<>:"|?*' or not one.isprintable() else one for one in last).strip(". ")
    path = PurePath(kept)
    if path.suffix.lower() not in SUPPORTED_SUFFIXES:
        raise UnsupportedDocumentError(
            f"{kept or 'This file'} is of a type that is not read: add PDFs, images, or office documents."
        )
    stem = path.stem.encode()[:_NAME_BYTES].decode(errors="ignore").rstrip(". ")
    return f"{'_' if _RESERVED.fullmatch(stem) else ''}{stem}{path.suffix}"


class Upload:
    """A file on its way into the index.

    Attributes:
        number: Names it.
        file_name: Under which it is kept.
        state: Where it is.
        message: What came of it, in a sentence.
    """

    def __init__(self, number: int, file_name: str) -> None:
        """Begin as one that waits."""
        self.number, self.file_name = number, file_name
        self.state: Literal["waiting", "indexing", "done", "failed"] = "waiting"
        self.message = ""
        self.read, self.total = 0, 0
        self.index: ColQwenIndex | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in ("done", "failed")

    def to_dict(self) -> dict[str, Any]:
        """Return what the page is told."""
        report = self.index.report if self.index else IndexingReport()
        return {
            "number": self.number,
            "file_name": self.file_name,
            "state": self.state,
            "message": self.message,
            "read": self.read,
            "stored": report.added + report.updated + report.unchanged,
            "total": self.total,
        }


class _StoppedError(Exception):
    """The program ends."""


class Uploads:
    """A line of files, indexed one after the other by a thread.

    Args:
        shared: The index; a collection is made by the first file.
        folder: Where files are kept; made when it is needed.
        image_dir: Where page images are written.
    """

    def __init__(self, shared: SharedIndex, folder: Path, image_dir: Path) -> None:
        """See the class."""
        self._shared, self._folder, self._image_dir = shared, folder, image_dir
        self._uploads: list[Upload] = []
        self._lock = threading.Lock()
        self._numbers = 0
        self._stopping = threading.Event()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="colqwen-uploads")

    def new_part(self) -> Path:
        """Return where a file is to be written while it comes in."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f".{uuid.uuid4().hex}.part"

    def add(self, part: Path, file_name: str, instead: str | None = None) -> Upload | None:
        """Put a file at the end of the line; it is moved from where it came in.

        Args:
            part: The file.
            file_name: What it is to be called.
            instead: What to do where another file is kept under the name, or waits to be: "replace" it, and its pages
                once the new ones are stored (if the new file cannot be read, both stay); or "keep" both.

        Returns:
            None if there is another, and it is not said what to do; the part is left as it is.
        """
        with self._lock:
            waiting = {upload.file_name for upload in self._uploads if not upload.is_over}
            kept = self._folder / file_name
            if file_name in waiting or (kept.exists() and not filecmp.cmp(kept, part, shallow=False)):
                if instead not in ("replace", "keep"):
                    return None
                file_name = self._free_name(file_name, waiting) if instead == "keep" else file_name
            self._numbers += 1
            upload = Upload(self._numbers, file_name)
            self._uploads = [*self._uploads, upload][-_REMEMBERED:]
            self._worker.submit(self._run, upload, part.replace(part.with_suffix(".waiting")))
            return upload

    def _free_name(self, file_name: str, waiting: set[str]) -> str:
        """Return a name like this one that no file has: `report (2).pdf`."""
        path, number = PurePath(file_name), 2
        while (name := f"{path.stem} ({number}){path.suffix}") in waiting or (self._folder / name).exists():
            number += 1
        return name

    def listed(self) -> list[Upload]:
        """Return the last files, oldest first."""
        with self._lock:
            return list(self._uploads)

    def close(self) -> None:
        """End at the page that is being read; files that waited are not kept. The same file, sent again, goes on."""
        self._stopping.set()
        self._worker.shutdown(wait=True)

    # ---- in the worker's thread

    def _run(self, upload: Upload, part: Path) -> None:
        try:
            if self._stopping.is_set():
                raise _StoppedError
            upload.state = "indexing"
            upload.message = self._keep_and_index(upload, part)
            upload.state = "done"
        except (ColQwenError, OSError) as error:
            told = without_folders(error, self._shared.store) if isinstance(error, ColQwenError) else in_one_line(error)
            upload.message, upload.state = told, "failed"
        except _StoppedError:
            upload.message, upload.state = "The program was ended: send the file again.", "failed"
        except Exception as error:
            _LOGGER.exception("Indexing %s failed", upload.file_name)
            upload.message, upload.state = f"Indexing failed ({in_one_line(error)}); see the terminal.", "failed"
        finally:
            part.unlink(missing_ok=True)

    def _keep_and_index(self, upload: Upload, part: Path) -> str:
        """Put the file in its place; the one that was there comes back if this one fails."""
        path = self._folder / upload.file_name
        before = part.with_suffix(".before")
        if path.exists():
            path.replace(before)
        part.replace(path)
        try:
            told = self._index(upload, path)
        except BaseException as error:
            if before.exists():
                before.replace(path)
            elif isinstance(error, UnreadableDocumentError):
                path.unlink()
            raise
        before.unlink(missing_ok=True)
        return told

    def _index(self, upload: Upload, path: Path) -> str:
        reader = PDFPageReader(image_dir=self._image_dir, on_error="skip")
        if path.suffix.lower() not in OFFICE_SUFFIXES:
            upload.total = expected_pages(path, path.name, reader.renderer, None)
        # Not safe from other threads that do the same; at worst a note is lost.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            with closing(reader.lazy_load_data(str(path), show_progress=False)) as documents:
                first = next(documents, None)  # before a collection is made for it
                if first is not None:
                    with self._shared.use(new=NEW_EMBEDDER) as index:
                        upload.index = ColQwenIndex(index.store, index.embedder)  # for a report of its own
                        upload.index.refresh_ref_docs(
                            self._counted(upload, chain([first], documents)), show_progress=False
                        )
        notes = list(dict.fromkeys(map(_note, caught)))
        if upload.index is None:
            raise UnreadableDocumentError(" ".join(filter(None, notes)) or f"{upload.file_name} has no pages.")
        return " ".join(filter(None, [_told(upload.index.report), *notes]))

    def _counted(self, upload: Upload, documents: Iterator[Document]) -> Iterator[Document]:
        for document in documents:
            if self._stopping.is_set():
                raise _StoppedError
            upload.read += 1
            yield document


def _note(caught: warnings.WarningMessage) -> str:
    """Return what the reader said of a file, or nothing."""
    said = str(caught.message)
    if issubclass(caught.category, SkippedDocumentWarning):
        return said.partition("in part: ")[2] or said
    return said if issubclass(caught.category, MissingTextWarning) else ""


def _told(report: IndexingReport) -> str:
    done = [
        f"{number} page{'s' if number != 1 else ''} {what}"
        for number, what in ((report.added, "added"), (report.updated, "updated"), (report.removed, "removed"))
        if number
    ]
    return f"{', '.join(done)}." if done else "It is in the index already; nothing changed."
