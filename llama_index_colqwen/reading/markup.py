"""Texts, Markdown, HTML, e-mails and EPUB books -> one HTML page with its pictures in it, for LibreOffice to draw.

Scripts and embedded objects are left out. Pictures are taken from the e-mail or the book, and for files from the file's
own folder; nothing is fetched.
"""

from __future__ import annotations

import base64
import codecs
import email
import email.policy
import html
import io
import mimetypes
import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator
from email.message import EmailMessage, MIMEPart
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

from llama_index_colqwen.errors import UnreadableDocumentError

__all__ = ["MARKUP_SUFFIXES", "check_unpacked_size", "to_html"]

MARKUP_SUFFIXES = frozenset({".eml", ".epub", ".htm", ".html", ".md", ".txt", ".xhtml"})

_MAX_UNPACKED = 1 << 30

_Pictures = Callable[[str], bytes | None]
"""Where a picture is said to be -> the picture, if it may be shown."""


def to_html(source: Path | bytes, name: str, suffix: str) -> str:
    """Write a document as HTML.

    Args:
        source: A file on this machine, or its bytes.
        name: The file's name; error messages start with it.
        suffix: One of `MARKUP_SUFFIXES`: what it is.

    Raises:
        UnreadableDocumentError: If it is not what its suffix says.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    beside = _beside(source) if isinstance(source, Path) else _none
    if suffix == ".eml":
        body = _email(data)
    elif suffix == ".epub":
        body = "".join(_book(data, name))
    elif suffix == ".txt":
        body = f"<pre>{html.escape(_decode(data))}</pre>"
    elif suffix == ".md":
        body = _clean(_markdown(_decode(data)), beside)
    else:
        body = _clean(_decode(data), beside)
    return f'<html><head><meta charset="utf-8"></head><body>{body}</body></html>'


def check_unpacked_size(source: Path | bytes, name: str) -> None:
    """Refuse a zip file that becomes very large; other files pass.

    Raises:
        UnreadableDocumentError: If it does.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as packed:
            size = sum(member.file_size for member in packed.infolist())
    except zipfile.BadZipFile:
        return
    if size > _MAX_UNPACKED:
        raise UnreadableDocumentError(f"{name}: it unpacks to {size >> 20} MB; at most {_MAX_UNPACKED >> 20} are read.")


def _markdown(text: str) -> str:
    from markdown_it import MarkdownIt

    return str(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


def _decode(data: bytes, charset: str | None = None) -> str:
    """Decode a text by its byte order mark, by what it says of itself, as UTF-8, or else as Windows does."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    said = re.search(rb"""<meta[^>]{,200}charset=["']?([\w-]+)""", data[:2048], re.IGNORECASE)
    for named in (charset, said[1].decode("ascii") if said else None, "utf-8"):
        try:
            if named:
                return data.decode(named)
        except (LookupError, UnicodeDecodeError):
            continue
    return data.decode("cp1252", "replace")


def _email(data: bytes) -> str:
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)  # noqa: S101 - by this policy
    rows = [(header, str(message[header])) for header in ("From", "To", "Cc", "Date", "Subject") if message[header]]
    attached = ", ".join(part.get_filename() or part.get_content_type() for part in message.iter_attachments())
    rows += [("Attachments", attached)] if attached else []
    head = "".join(f"<b>{header}:</b> {html.escape(value)}<br>" for header, value in rows)
    inline = {str(part["Content-ID"]).strip("<> "): part for part in message.walk() if part["Content-ID"]}

    def pictures(source: str) -> bytes | None:
        part = inline.get(unquote(source.removeprefix("cid:")))
        return _content(part) if part is not None else None

    body = message.get_body(("html", "plain"))
    if body is None:
        return f"<p>{head}</p>"
    text = _decode(_content(body), body.get_content_charset())
    shown = _clean(text, pictures) if body.get_content_subtype() == "html" else f"<pre>{html.escape(text)}</pre>"
    return f"<p>{head}</p><hr>{shown}"


def _content(part: MIMEPart) -> bytes:
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""


def _book(data: bytes, name: str) -> Iterator[str]:
    """Yield a book's chapters in the order of reading, each on a new page."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            root = ElementTree.fromstring(packed.read("META-INF/container.xml"))
            (package,) = [str(found.get("full-path")) for found in root.iter() if found.tag.endswith("}rootfile")][:1]
            items = list(ElementTree.fromstring(packed.read(package)).iter())
            files = {item.get("id"): str(item.get("href")) for item in items if item.tag.endswith("}item")}
            chapters = [files[item.get("idref")] for item in items if item.tag.endswith("}itemref")]
            for number, chapter in enumerate(chapters):
                path = _joined(package, chapter)
                text = _clean(_decode(packed.read(path)), _in_book(packed, path))
                # Of a division, LibreOffice would not take the break.
                yield f'<p style="page-break-before: always"></p>{text}' if number else text
    except (zipfile.BadZipFile, ElementTree.ParseError, KeyError, ValueError, OSError) as error:
        raise UnreadableDocumentError(f"{name}: the book is corrupt ({error}).") from error


def _joined(base: str, reference: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(urlsplit(reference).path)))


def _in_book(packed: zipfile.ZipFile, chapter: str) -> _Pictures:
    def pictures(source: str) -> bytes | None:
        path = _joined(chapter, source)
        return packed.read(path) if path in packed.namelist() else None

    return pictures


def _beside(file: Path) -> _Pictures:
    """Pictures in the folder of a file, and in folders there; no others of this machine."""
    folder = file.resolve().parent

    def pictures(source: str) -> bytes | None:
        if urlsplit(source).scheme or source.startswith("//"):
            return None
        path = (folder / unquote(urlsplit(source).path)).resolve()
        inside = path.is_relative_to(folder) and str(mimetypes.guess_type(path.name)[0]).startswith("image/")
        return path.read_bytes() if inside and path.is_file() else None

    return pictures


def _none(source: str) -> None:
    """Of what is given as bytes, nothing is beside."""


def _clean(text: str, pictures: _Pictures) -> str:
    cleaner = _Cleaner(pictures)
    cleaner.feed(text)
    cleaner.close()
    return "".join(cleaner.kept)


class _Cleaner(HTMLParser):
    """Keeps what is within an HTML page's body, with its pictures in it, and without what is run or fetched."""

    _LEFT_OUT = frozenset(
        {"script", "style", "title", "noscript", "iframe", "object", "embed", "applet", "video", "audio"}
    )
    _EMPTY = frozenset({"embed"})
    _FRAME = frozenset({"html", "head", "body", "meta", "link", "base"})

    def __init__(self, pictures: _Pictures) -> None:
        super().__init__(convert_charrefs=False)
        self.kept: list[str] = []
        self._pictures = pictures
        self._within: list[str] = []  # what is being left out

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._LEFT_OUT:
            self._within += [] if tag in self._EMPTY else [tag]
        elif tag in ("img", "image"):
            self._keep(self._picture(dict(attrs)))
        elif tag not in self._FRAME:
            self._keep(self.get_starttag_text() or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self._LEFT_OUT:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._within:
            del self._within[self._within.index(tag) :]
        elif tag not in self._FRAME:
            self._keep(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self._keep(data)

    def handle_entityref(self, name: str) -> None:
        self._keep(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self._keep(f"&#{name};")

    def _keep(self, piece: str) -> None:
        if not self._within:
            self.kept.append(piece)

    def _picture(self, attributes: dict[str, str | None]) -> str:
        source = attributes.get("src") or attributes.get("xlink:href") or ""
        if not source.startswith("data:image/"):
            picture = self._pictures(source)
            if picture is None:
                return html.escape(attributes.get("alt") or "")
            kind = mimetypes.guess_type(urlsplit(source).path)[0] or "image/png"  # LibreOffice looks for itself
            source = f"data:{kind};base64,{base64.b64encode(picture).decode()}"
        size = "".join(
            f' {side}="{html.escape(attributes[side] or "")}"' for side in ("width", "height") if side in attributes
        )
        return f'<img src="{html.escape(source)}"{size}>'
