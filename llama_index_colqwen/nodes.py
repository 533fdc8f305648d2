"""A page <-> LlamaIndex's documents and nodes.

From here outward a page is an `ImageNode`; inward it is a `Page`. Knows nothing of embedders or Milvus.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import re
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

import numpy as np
from llama_index.core.schema import BaseNode, Document, ImageNode, MetadataMode, NodeWithScore, TextNode
from pydantic import Field

from llama_index_colqwen.errors import (
    DocumentNotFoundError,
    InvalidOptionError,
    NoPageImageError,
    UnreadableDocumentError,
)
from llama_index_colqwen.images import image_sha256, write_page_image
from llama_index_colqwen.pages import Page, PageImage, WordBox, join_surrogates, unpack_boxes

__all__ = [
    "HIDDEN_METADATA",
    "ImagelessPageNode",
    "PageNode",
    "PageWithScore",
    "caption",
    "excerpt",
    "make_page_id",
    "node_from_page",
    "node_without_image",
    "page_from_node",
    "with_image_on_disk",
    "word_boxes",
]

HIDDEN_METADATA = ("file_path", "page_number", "document_id", "page_sha256", "section", "text_source", "word_boxes")
"""Metadata that a language model has no use for: `file_name` and `page_label` are what it sees."""

# What SimpleDirectoryReader excludes of every document it reads. It leaves a model the `file_path`, which pages hide: a
# model that sees neither cannot say which file an answer is from.
_EXCLUDED_BY_SIMPLE_DIRECTORY_READER = {
    "file_name",
    "file_type",
    "file_size",
    "creation_date",
    "last_modified_date",
    "last_accessed_date",
}

# What a node of the user's own may carry and has to find again when it is retrieved.
_CARRIED = (
    "excluded_embed_metadata_keys",
    "excluded_llm_metadata_keys",
    "metadata_separator",
    "metadata_template",
    "relationships",
    "text_template",
)


_SHOWN_CHARACTERS = 80


class PageNode(ImageNode):
    """A stored page as LlamaIndex's node: short where it is printed, for people and models.

    Attributes:
        packed_word_boxes: See `word_boxes`. Not in the metadata, which LlamaIndex copies into every response.
    """

    packed_word_boxes: str = Field(default="", repr=False)

    # class_name() stays "ImageNode": by it LlamaIndex's stores know what to make of a node that they read.

    def __repr__(self) -> str:
        """Name the page and show how its text begins."""
        text = textwrap.shorten(self.text, _SHOWN_CHARACTERS, placeholder="...")
        return f"<{caption(self)}: {text!r}>" if text else f"<{caption(self)}>"

    __str__ = __repr__


class ImagelessPageNode(PageNode):
    """A page whose image cannot be had: a model that sees images is given its text."""

    def get_content_blocks(self, metadata_mode: MetadataMode = MetadataMode.NONE) -> list[Any]:
        """Return metadata and text as blocks."""
        return TextNode.get_content_blocks(self, metadata_mode)


class PageWithScore(NodeWithScore):
    """A page that was found, and its score: a `NodeWithScore` whose node is known to be a page's."""

    node: PageNode

    def __repr__(self) -> str:
        """Name the page and its score."""
        return f"<{self.score:.3f} {repr(self.node)[1:]}" if self.score is not None else repr(self.node)

    __str__ = __repr__


def make_page_id(document_id: str, page_number: int) -> str:
    """Name a page by its document's sha256 and its number; ids sort in page order."""
    return f"{document_id}-p{page_number:05d}"


def page_from_node(node: BaseNode) -> Page:
    """Turn a `Document` of `PDFPageReader`, or any node with an image, into a page.

    Args:
        node: An `ImageDocument` or `ImageNode` with `image_path` or inline base64 `image`. Its id is the page's id.
            Metadata `document_id`, `file_name` and `page_number` are taken where they are.

    Raises:
        NoPageImageError: If the node has no image here (text only, or a URL).
        InvalidOptionError: If it is a piece of a page, as text splitters
            make them, or has metadata that cannot be kept.
        DocumentNotFoundError: If its image file is gone.
        UnreadableDocumentError: If its image file cannot be read.
    """
    if not isinstance(node, BaseNode):
        raise InvalidOptionError(f"Documents are LlamaIndex's documents or nodes; got {type(node).__name__}.")
    if node.ref_doc_id not in (None, node.node_id) and node.ref_doc_id == _page_it_says_it_is(node):
        raise InvalidOptionError(
            f"Node {node.node_id!r} is a piece of page {node.ref_doc_id!r}, and pages are indexed whole: index what "
            "PDFPageReader reads, without a text splitter in between."
        )
    image_path, image, mimetype = _image_of(node)
    if image is None and image_path is None:
        raise NoPageImageError(
            f"Document {node.node_id!r} has no page image: every page needs one, on disk or inline. "
            "Read files with PDFPageReader, which draws the pages."
        )
    text = _text_of(node)
    metadata = {
        join_surrogates(key): _plain(value, f"{node.node_id!r}, key {key!r}") for key, value in node.metadata.items()
    }
    if packed := _packed_boxes(node):
        metadata["word_boxes"] = packed
    number = metadata.get("page_number", 1)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InvalidOptionError(f"Document {node.node_id!r} has page_number {number!r}; pages are counted from 1.")
    data = image if image is not None else _read(Path(image_path or ""), node.node_id)
    image_node = ImageNode(
        id_=node.node_id,
        text=text,
        metadata=metadata,
        image_path=image_path,
        image_mimetype=mimetype,
        **{name: getattr(node, name) for name in _CARRIED if hasattr(node, name)},
    )
    if set(image_node.excluded_llm_metadata_keys) >= _EXCLUDED_BY_SIMPLE_DIRECTORY_READER | {"file_path"}:
        image_node.excluded_llm_metadata_keys = [
            key for key in image_node.excluded_llm_metadata_keys if key != "file_name"
        ]
    return Page(
        page_id=node.node_id,
        document_id=str(metadata.get("document_id") or node.ref_doc_id or node.node_id),
        file_name=str(metadata.get("file_name") or (Path(image_path).name if image_path else node.node_id)),
        page_number=number,
        text=text,
        image_path=image_path,
        image=image,
        content_hash=hashlib.sha256(f"{image_sha256(data)}\n{text}".encode("utf-8", "surrogatepass")).hexdigest(),
        node=json.loads(image_node.to_json()),
    )


def node_from_page(page: Page) -> PageNode:
    """Turn a stored page back into the node it was; a new object each time, since LlamaIndex changes nodes in place."""
    return PageNode.from_dict(_fields(page, page.image_path))


def node_without_image(page: Page) -> ImagelessPageNode:
    """Turn a stored page back into a node; see `ImagelessPageNode`."""
    return ImagelessPageNode.from_dict(_fields(page, None))


def _fields(page: Page, image_path: str | None) -> dict[str, Any]:
    fields = {**copy.deepcopy(dict(page.node)), "image_path": image_path}
    return {**fields, "packed_word_boxes": fields.get("metadata", {}).pop("word_boxes", "")}


def caption(node: BaseNode) -> str:
    """Say in words where a page is from, for people and models: `report.pdf, page iv`."""
    name = node.metadata.get("file_name") or node.node_id
    label = node.metadata.get("page_label") or node.metadata.get("page_number")
    return f"{name}, page {label}" if label else str(name)


def excerpt(text: str, max_characters: int) -> str:
    """Return the beginning of a text, whole words, at most so many characters and a mark that it goes on."""
    if len(text) <= max_characters:
        return text
    whole = re.match(r".+(?=\s)", text[: max_characters + 1], re.DOTALL)
    return f"{whole[0].rstrip() if whole else text[:max_characters]} ..."


def word_boxes(node: BaseNode) -> list[WordBox]:
    """Return the words of a page node and where they stand, as fractions of the page; empty if it has none."""
    packed = _packed_boxes(node)
    return unpack_boxes(_text_of(node), packed) if packed else []


def _packed_boxes(node: BaseNode) -> str:
    """Return a page's packed boxes: a field of what was retrieved, metadata of what was read."""
    packed = node.packed_word_boxes if isinstance(node, PageNode) else node.metadata.get("word_boxes")
    return str(packed or "")


def with_image_on_disk(page: Page, image_dir: Path) -> Page:
    """Write a page's inline image to disk, and let the page and its node refer to the file.

    Raises:
        InvalidOptionError: If the inline bytes are no image.
    """
    if page.image is None:
        return page
    try:
        page.open_image().close()
    except UnreadableDocumentError as error:
        raise InvalidOptionError(f"The inline image of document {page.page_id!r} is no image: {error}.") from error
    image = PageImage(page.image, page.node.get("image_mimetype") or "image/jpeg")
    path = str(write_page_image(image_dir, page.document_id, page.page_number, image))
    return replace(page, image=None, image_path=path, node={**page.node, "image_path": path})


def _page_it_says_it_is(node: BaseNode) -> str | None:
    """Return the id of the reader's page that the node's metadata are of."""
    document_id, number = node.metadata.get("document_id"), node.metadata.get("page_number")
    return make_page_id(document_id, number) if isinstance(document_id, str) and isinstance(number, int) else None


def _image_of(node: BaseNode) -> tuple[str | None, bytes | None, str | None]:
    if isinstance(node, ImageNode):
        inline: str | bytes | None = node.image
        path, mimetype = node.image_path, node.image_mimetype
    elif isinstance(node, Document) and node.image_resource is not None:
        resource = node.image_resource
        inline, path, mimetype = resource.data, str(resource.path) if resource.path else None, resource.mimetype
    else:
        return None, None, None
    try:
        return path, base64.b64decode(inline) if inline else None, mimetype
    except ValueError as error:
        raise InvalidOptionError(f"The inline image of document {node.node_id!r} is not base64.") from error


def _read(path: Path, node_id: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DocumentNotFoundError(f"The image of document {node_id!r} is gone: there is no {path}.") from error
    except OSError as error:
        raise UnreadableDocumentError(f"The image of document {node_id!r} cannot be read: {error}.") from error


def _plain(value: Any, where: str) -> Any:  # noqa: ANN401
    """Turn a metadata value into what JSON has: what it lacks becomes the text that LlamaIndex would show.

    Args:
        value: Any.
        where: Names document and key in errors.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return join_surrogates(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, (date, time, timedelta, Decimal, UUID, PurePath)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one, where) for one in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {join_surrogates(key): _plain(one, where) for key, one in value.items()}
    raise InvalidOptionError(
        f"The metadata of document {where}, cannot be kept: {type(value).__name__} {str(value)[:80]!r} is neither a "
        "text, a finite number of 64 bits, a truth value, a date, nor a list of these or a mapping of texts to them."
    )


def _text_of(node: BaseNode) -> str:
    text: Any = getattr(node, "text", "")
    return text or ""
