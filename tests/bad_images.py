"""What is sent in place of a page image, by mistake or on purpose: text, fault's type, and a part of its message."""

from __future__ import annotations

import base64
import io
import struct
import zlib

from PIL import Image


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _bomb(width: int, height: int) -> bytes:
    """Write a black picture of 1 bit a pixel, some hundred bytes a megapixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" * (1 + -(-width // 8))) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


_page = Image.effect_noise((200, 300), 50)
_frames = [Image.new("L", (50, 50), grey) for grey in (0, 100, 200)]

BAD_IMAGES = {
    "empty": ("", "InvalidImage", "image 0 is empty"),
    "not base64": ("what?!", "InvalidImage", "not base64"),
    "half base64": ("abcde", "InvalidImage", "not base64"),
    "address": ("https://example.com/page.png", "InvalidImage", "never opened"),
    "path": ("/etc/passwd", "InvalidImage", "not a picture"),
    "file address": ("file:///etc/passwd", "InvalidImage", "not base64"),
    "data URL of text": ("data:text/plain,hello", "InvalidImage", "without base64"),
    "not an image": (_encode(b"just words"), "InvalidImage", "not a picture that is read: PNG"),
    "PDF": (_encode(b"%PDF-1.7\n"), "InvalidImage", "not a picture"),
    "SVG": (
        _encode(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
        "InvalidImage",
        "not a picture",
    ),
    "EPS": (_encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "InvalidImage", "not a picture"),
    "truncated PNG": (_encode(_saved(_page, "PNG")[:-2000]), "InvalidImage", "truncated or corrupt"),
    "truncated JPEG": (_encode(_saved(_page, "JPEG")[:2000]), "InvalidImage", "truncated or corrupt"),
    "bomb of 200 megapixels": (_encode(_bomb(20_000, 10_000)), "ImageTooLarge", "at most 50"),
    "bomb of 100 megapixels": (_encode(_bomb(10_000, 10_000)), "ImageTooLarge", "at most 50"),
    "picture of 60 megapixels": (_encode(_bomb(10_000, 6_000)), "ImageTooLarge", "60 megapixels: at most 50"),
    "animated GIF": (
        _encode(_saved(_frames[0], "GIF", save_all=True, append_images=_frames[1:])),
        "InvalidImage",
        "several pictures",
    ),
    "TIFF of several pages": (
        _encode(_saved(_frames[0], "TIFF", save_all=True, append_images=_frames[1:])),
        "InvalidImage",
        "several pictures",
    ),
}
