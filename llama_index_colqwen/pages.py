"""The values that flow from a file to an answer.

Plain frozen dataclasses. They know nothing of PDF libraries, models, Milvus or LlamaIndex.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError, UnreadableDocumentError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "Page",
    "PageFile",
    "PageImage",
    "RenderedPage",
    "WordBox",
    "files_of",
    "join_surrogates",
    "locate_image",
    "pack_boxes",
    "unpack_boxes",
    "with_files",
    "with_relative_image",
]


@dataclass(frozen=True)
class PageImage:
    """A page's picture, encoded.

    Attributes:
        data: The encoded image.
        mimetype: What it is encoded as.
    """

    data: bytes = field(repr=False)
    mimetype: str = "image/jpeg"


@dataclass(frozen=True)
class WordBox:
    """A word and where it stands on the upright page, as fractions of its width and height, origin top left."""

    text: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class RenderedPage:
    """One page, drawn upright on white.

    Attributes:
        page_number: 1-based.
        page_label: What the document itself calls the page (such as `iv`), else the number.
        image: RGB.
        words: The text layer in reading order, a box a word; empty where there is none.
        text: The same words, joined by spaces and line ends: `text.split()` and `words` correspond one to one.
        section: What the document's outline calls the parts that begin on the page, or else the one that goes on there;
            empty where it has no outline.
    """

    page_number: int
    page_label: str
    image: Image.Image
    words: list[WordBox]
    text: str
    section: str = ""


@dataclass(frozen=True)
class PageFile:
    """A file that a page is in: its name, and where it lies, if that is known."""

    name: str
    path: str | None = None


@dataclass(frozen=True)
class Page:
    """The retrieved unit.

    Attributes:
        page_id: Unique and deterministic: the document's sha256 and the page number.
        document_id: The document's sha256 in hex; the same bytes are the same document.
        file_name: The file's name, without folders.
        page_number: 1-based.
        text: The text layer, or what OCR read; may be empty.
        image_path: Where the page image lies on this machine, if it was written.
        image: The encoded page image, if it is held in memory.
        content_hash: Changes when what an embedder sees (image, text) changes; in hex.
        node: The page as LlamaIndex's node dictionary, without image bytes. Of a stored page, its `image_path` is
            relative to the image folder, where the image lies in or beside that.
    """

    page_id: str
    document_id: str
    file_name: str
    page_number: int
    text: str = field(repr=False)
    image_path: str | None = None
    image: bytes | None = field(default=None, repr=False)
    content_hash: str = ""
    node: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The node's metadata."""
        metadata: Mapping[str, Any] = self.node.get("metadata", {})
        return metadata

    @property
    def revision(self) -> str:
        """Changes when anything that is kept of the page changes, metadata included; in hex."""
        node = json.dumps(self.node, sort_keys=True)
        return hashlib.sha256(f"{self.content_hash}\n{node}".encode()).hexdigest()

    def read_image(self) -> bytes:
        """Return the encoded page image.

        Raises:
            DocumentNotFoundError: If the image file is gone.
            UnreadableDocumentError: If the image file cannot be read.
            InvalidOptionError: If the page has no image at all.
        """
        if self.image is not None:
            return self.image
        if self.image_path is None:
            raise InvalidOptionError(f"{self} has no image.")
        try:
            return Path(self.image_path).read_bytes()
        except FileNotFoundError as error:
            raise DocumentNotFoundError(f"The image of {self} is gone: there is no {self.image_path}.") from error
        except OSError as error:
            raise UnreadableDocumentError(f"The image of {self} cannot be read: {error}.") from error

    def open_image(self) -> Image.Image:
        """Open the page image; it is decoded when its pixels are used.

        Raises:
            DocumentNotFoundError: If the image file is gone.
            UnreadableDocumentError: If it is no image.
            InvalidOptionError: If the page has no image at all.
        """
        from PIL import Image

        if self.image is None and self.image_path is not None and Path(self.image_path).is_file():
            source: str | io.BytesIO = self.image_path  # only its head is read, until the pixels are used
        else:
            source = io.BytesIO(self.read_image())
        try:
            return Image.open(source)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises
            raise UnreadableDocumentError(f"The image of {self} is no image that is read: {error}.") from error

    def __str__(self) -> str:
        """Name the page in errors."""
        return f"page {self.page_number} of {self.file_name} ({self.page_id})"


def files_of(metadata: Mapping[str, Any]) -> list[PageFile]:
    """Return the files that a page is in: the one that `file_name` and `file_path` name, or all of several."""
    names, paths = metadata.get("file_names"), metadata.get("file_paths")
    if isinstance(names, list) and isinstance(paths, list) and names and len(names) == len(paths):
        return [PageFile(name, path) for name, path in zip(names, paths, strict=True)]
    path = metadata.get("file_path")
    return [PageFile(str(metadata.get("file_name") or ""), None if path is None else str(path))]


_FILE_LISTS = ("file_names", "file_paths")


def with_files(page: Page, files: Sequence[PageFile]) -> Page:
    """Return the page as one that is in these files, at least one; the first gives its `file_name` and `file_path`."""
    metadata = {key: value for key, value in page.metadata.items() if key not in _FILE_LISTS}
    metadata["file_name"] = files[0].name
    if files[0].path is not None:
        metadata["file_path"] = files[0].path
    node = dict(page.node)
    if len(files) > 1:
        metadata |= {"file_names": [file.name for file in files], "file_paths": [file.path for file in files]}
    for hidden in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys"):
        shown = [key for key in node.get(hidden, []) if key not in _FILE_LISTS]
        node[hidden] = shown + (list(_FILE_LISTS) if len(files) > 1 else [])
    return replace(page, file_name=files[0].name, node={**node, "metadata": metadata})


def with_relative_image(page: Page, image_dir: Path | None) -> Page:
    """Let the page's node name the image relative to the image folder, if it lies there or in the folder beside.

    So an index, its images and its documents can be moved together. Other images keep their absolute path.
    """
    if page.image_path is None:
        return page
    path = os.path.abspath(page.image_path)
    if image_dir is not None and Path(path).is_relative_to(Path(os.path.abspath(image_dir)).parent):
        path = PurePath(os.path.relpath(path, image_dir)).as_posix()
    return replace(page, node={**page.node, "image_path": path})


def locate_image(stored: str, image_dir: Path | None) -> str:
    """Return where an image is that `with_relative_image` named.

    Where nothing is there, it is looked for in the image folder and in the folder beside, by the last parts of its
    path, at least two: the reader's images have names of their own.

    Args:
        stored: Relative to the image folder, or absolute.
        image_dir: The image folder as it is now.
    """
    first = stored if image_dir is None else os.path.normpath(image_dir / stored)
    for path in (first, *_moved(stored, image_dir)):
        if os.path.exists(path):
            return path
    return first


def _moved(stored: str, image_dir: Path | None) -> Iterator[str]:
    if image_dir is None:
        return
    parts = [part for part in stored.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts) - 1):
        for folder in (image_dir, image_dir.parent):
            yield str(folder.joinpath(*parts[start:]))


_BOX_UNITS = 65535


def pack_boxes(words: Sequence[WordBox]) -> str:
    """Pack where words stand into text: 8 bytes a word, base64.

    A list of numbers would cost ten times as much memory in every node. The words themselves are not packed: they are
    the page text split at white space, in the same order.
    """
    corners = np.array([(word.left, word.top, word.right, word.bottom) for word in words], dtype=np.float64)
    units = (corners.clip(0.0, 1.0) * _BOX_UNITS).round().astype("<u2")
    return base64.b64encode(units.tobytes()).decode("ascii")


def unpack_boxes(text: str, packed: str) -> list[WordBox]:
    """Undo `pack_boxes` for the page's text.

    Raises:
        InvalidOptionError: If there is not one box a word.
    """
    words = text.split()
    try:
        corners = np.frombuffer(base64.b64decode(packed), dtype="<u2").reshape(-1, 4) / _BOX_UNITS
    except ValueError as error:
        raise InvalidOptionError(f"These are no packed word boxes: {packed[:40]!r}.") from error
    if len(words) != len(corners):
        raise InvalidOptionError(
            f"The text has {len(words)} words but {len(corners)} boxes: the text was changed afterwards."
        )
    return [WordBox(word, *map(float, row)) for word, row in zip(words, corners, strict=True)]


def join_surrogates(text: str) -> str:
    r"""Return text that can be written as UTF-8, as Milvus takes it: pairs of surrogates joined, any other is U+FFFD.

    PDFs' letters beyond 16 bits come as pairs; Python has one for each byte of a file's name that is not UTF-8.

    >>> join_surrogates("\ud83d\ude00 r\udce9sum\udce9") == "\U0001f600 r\ufffdsum\ufffd"
    True
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
