"""The samples and a question -> the picture of README and docs: the page that was found, and where the answer stands.

python examples/make_picture.py [docs/images/found-page.png]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from llama_index_colqwen import ColQwenIndex, PDFPageReader

HERE = Path(__file__).parent
QUESTION = "Which sensor drifted least in the salt-spray test?"
WIDTH, HEIGHT, MARGIN = 1200, 720, 40
PAPER, SHEET, INK, QUIET, LINE = (246, 247, 250), (255, 255, 255), (28, 32, 40), (96, 104, 120), (208, 212, 222)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font."""
    return ImageFont.load_default(size)


def framed(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale an image into a box, with a line round it."""
    scale = min(size[0] / image.width, size[1] / image.height)
    scaled = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    ImageDraw.Draw(scaled).rectangle((0, 0, scaled.width - 1, scaled.height - 1), outline=LINE)
    return scaled


def main(target: Path) -> None:
    """Draw it."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    with tempfile.TemporaryDirectory() as work:
        documents = PDFPageReader(image_dir=Path(work) / "pages").load_data(HERE / "pdfs")
        with ColQwenIndex.from_documents(documents, uri=Path(work) / "picture.db", show_progress=False) as index:
            hits = index.as_retriever(similarity_top_k=4, score="normalized").retrieve(QUESTION)
            why = index.explain(QUESTION, hits[0])
            page, region = why.to_image(), why.regions()[0]
            with Image.open(str(hits[0].node.image_path)) as image:
                x0, y0, x1, y1 = region.scaled(*image.size)
                around = image.height / 40
                crop = image.convert("RGB").crop(
                    (round(x0 - around), round(y0 - around), round(x1 + 4.4 * around), round(y1 + 5 * around))
                )

    sheet = framed(page, (WIDTH // 2 - 2 * MARGIN, HEIGHT - 2 * MARGIN))
    left = WIDTH - MARGIN - sheet.width
    picture.paste(sheet, (left, MARGIN))

    draw.rounded_rectangle((MARGIN, MARGIN, left - MARGIN, MARGIN + 64), 12, fill=SHEET, outline=LINE, width=2)
    draw.text((MARGIN + 22, MARGIN + 32), QUESTION, INK, font(21), anchor="lm")
    y = MARGIN + 100
    for place, hit in enumerate(hits):
        name = f"{hit.metadata['file_name']}, page {hit.metadata['page_label']}"
        draw.text((MARGIN + 22, y), name, INK if place == 0 else QUIET, font(19), anchor="lm")
        right = left - MARGIN - 22
        draw.text((right, y), f"{hit.score:.2f}", INK if place == 0 else QUIET, font(19), anchor="rm")
        draw.line((MARGIN + 22, y + 22, right, y + 22), fill=LINE)
        y += 44
    y += 8
    draw.text((MARGIN + 22, y), f"{region.share:.0%} of the score lies here:", QUIET, font(19), anchor="lm")
    y += 26
    detail = framed(crop, (left - 2 * MARGIN, HEIGHT - MARGIN - y))
    picture.paste(detail, (MARGIN, y))

    target.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "docs" / "images" / "found-page.png")
