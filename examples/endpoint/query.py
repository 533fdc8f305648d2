"""Send the pages of a PDF and some questions to a ColQwen2 endpoint, and print how well each page answers each.

    python query.py report.pdf "Which sensor drifted least?" --url http://127.0.0.1:8000

The secret, if the endpoint asks for one, is read from COLQWEN_TOKEN. Works with `colqwen serve` and with a Hugging Face
endpoint that runs `handler.py`. Needs pdf2image (and poppler) and httpx, nothing of llama-index-colqwen.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
from io import BytesIO
from typing import Any

import httpx
from pdf2image import convert_from_path
from PIL import Image

PAGES_A_REQUEST = 8


def to_base64(image: Image.Image) -> str:
    """Encode a page image as JPEG, in base64."""
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=90)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def query(url: str, token: str, images: list[str], texts: list[str]) -> dict[str, Any]:
    """Post images and texts, and return the answer.

    Raises:
        SystemExit: With what the endpoint said, if it answered with an error.
    """
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    payload = {"inputs": [], "image": images, "text": texts, "encoding": "base64-float16"}
    response = httpx.post(url, json=payload, headers=headers, timeout=600)
    answer: dict[str, Any] = response.json()
    if "error" in answer:
        sys.exit(f"The endpoint says: {answer['error']}")
    return answer


def main() -> None:
    """Read the arguments, ask, and print a line a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pdf", help="the document")
    parser.add_argument("text", nargs="+", help="questions")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the endpoint's address")
    arguments = parser.parse_args()

    pages = convert_from_path(arguments.pdf, dpi=150)
    token = os.environ.get("COLQWEN_TOKEN", "")
    for start in range(0, len(pages), PAGES_A_REQUEST):
        images = [to_base64(page) for page in pages[start : start + PAGES_A_REQUEST]]
        scores = query(arguments.url, token, images, arguments.text)["scores"]  # a row a text, a column an image
        for number, page_scores in enumerate(zip(*scores, strict=True), start + 1):
            print(f"page {number}:", *(f"{score:.3f}" for score in page_scores))  # noqa: T201


if __name__ == "__main__":
    main()
