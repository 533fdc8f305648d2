"""A page <-> LlamaIndex's documents and nodes.

From here outward a page is an `ImageNode`; inward it is a `Page`. Knows nothing of embedders or Milvus.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_index.core.schema import BaseNode, Document, ImageNode
from PIL import UnidentifiedImageError

from llama_index_colqwen.errors import InvalidOptionError
from llama_index_colqwen.images import image_sha256, write_page_image
from llama_index_colqwen.pages import Page, PageImage, WordBox, unpack_boxes

__all__ = ["HIDDEN_METADATA", "make_page_id", "node_from_page", "page_from_node", "with_image_on_disk", "word_boxes"]

HIDDEN_METADATA = ("file_path", "page_number", "document_id", "page_sha256", "text_source", "word_boxes")
"""Metadata that a language model has no use for: `file_name` and `page_label` are what it sees."""

# What a node of the user's own may carry and has to find again when it is retrieved.
_CARRIED = (
    "excluded_embed_metadata_keys",
    "excluded_llm_metadata_keys",
    "metadata_separator",
    "metadata_template",
    "relationships",
    "text_template",
)


def make_page_id(document_id: str, page_number: int) -> str:
    """Name a page by its document's sha256 and its number; ids sort in page order."""
    return f"{document_id}-p{page_number:05d}"


def page_from_node(node: BaseNode) -> Page:
    """Turn a `Document` of `PDFPageReader`, or any node with an image, into a page.

    Args:
        node: An `ImageDocument` or `ImageNode` with `image_path` or inline base64 `image`. Its id is the page's id.
            Metadata `document_id`, `file_name` and `page_number` are taken where they are.

    Raises:
        InvalidOptionError: If the node has no image here: text only, or a URL.
        FileNotFoundError: If its image file is gone.
    """
    image_path, image, mimetype = _image_of(node)
    if image is None and image_path is None:
        raise InvalidOptionError(
            f"Document {node.node_id!r} has no page image: every page needs one, on disk or inline. "
            "Read files with PDFPageReader, which draws the pages."
        )
    text = _text_of(node)
    metadata = dict(node.metadata)
    number = metadata.get("page_number", 1)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InvalidOptionError(f"Document {node.node_id!r} has page_number {number!r}; pages are counted from 1.")
    image_node = ImageNode(
        id_=node.node_id,
        text=text,
        metadata=metadata,
        image_path=image_path,
        image_mimetype=mimetype,
        **{name: getattr(node, name) for name in _CARRIED if hasattr(node, name)},
    )
    data = image if image is not None else Path(image_path or "").read_bytes()
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


def node_from_page(page: Page) -> ImageNode:
    """Turn a stored page back into the node it was; a new object each time, since LlamaIndex changes nodes in place."""
    return ImageNode.from_dict(copy.deepcopy(dict(page.node)))


def word_boxes(node: BaseNode) -> list[WordBox]:
    """Return the words of a page node and where they stand, as fractions of the page; empty if it has none."""
    packed = node.metadata.get("word_boxes")
    return unpack_boxes(_text_of(node), packed) if packed else []


def with_image_on_disk(page: Page, image_dir: Path) -> Page:
    """Write a page's inline image to disk, and let the page and its node refer to the file.

    Raises:
        InvalidOptionError: If the inline bytes are no image.
    """
    if page.image is None:
        return page
    try:
        page.open_image().close()
    except UnidentifiedImageError as error:
        raise InvalidOptionError(f"The inline image of document {page.page_id!r} is no image: {error}.") from error
    image = PageImage(page.image, page.node.get("image_mimetype") or "image/jpeg")
    path = str(write_page_image(image_dir, page.document_id, page.page_number, image))
    return replace(page, image=None, image_path=path, node={**page.node, "image_path": path})


def _image_of(node: BaseNode) -> tuple[str | None, bytes | None, str | None]:
    if isinstance(node, ImageNode):
        inline: str | bytes | None = node.image
        path, mimetype = node.image_path, node.image_mimetype
    elif isinstance(node, Document) and node.image_resource is not None:
        resource = node.image_resource
        inline, path, mimetype = resource.data, str(resource.path) if resource.path else None, resource.mimetype
    else:
        return None, None, None
    return path, base64.b64decode(inline) if inline else None, mimetype


def _text_of(node: BaseNode) -> str:
    text: Any = getattr(node, "text", "")
    return text or ""
