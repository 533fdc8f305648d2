"""The sample PDFs in `colqwen ui` -> the pictures of it in docs/images.

    python examples/make_screenshots.py

Needs chromium, and the extra `[ui]`. OCR, where it is installed, reads the scanned sample, too.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image

from llama_index_colqwen import ColQwenIndex, MilvusPageStore, PDFPageReader
from llama_index_colqwen.serving.server import bind, make_server
from llama_index_colqwen.shared_index import SharedIndex
from llama_index_colqwen.web.app import create_app
from llama_index_colqwen.web.uploads import Uploads

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
QUESTION = "Which sensor drifted least in the salt-spray test?"
SIZE = (1280, 860)


def main() -> None:
    """Index the samples, serve the page, and photograph it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("There is no chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, MilvusPageStore(f"{folder}/samples.db") as store:
        documents = PDFPageReader(image_dir=store.image_dir).load_data(HERE / "pdfs")
        index = ColQwenIndex.from_documents(documents, store=store)
        best = index.as_retriever().retrieve(QUESTION)[0]
        shared = SharedIndex(store)
        app = create_app(shared, Uploads(shared, Path(folder) / "uploads", Path(folder) / "samples.images"))
        with closing(bind("127.0.0.1", 0, token=None)) as taken:
            server = make_server(app)
            running = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
            running.start()
            while not server.started:
                time.sleep(0.05)
            try:
                address = f"http://127.0.0.1:{taken.getsockname()[1]}/?"
                photograph(chromium, address + urlencode({"q": QUESTION}), "ui-results")
                photograph(chromium, address + urlencode({"q": QUESTION, "page": best.node_id}), "ui-page")
            finally:
                server.should_exit = True
                running.join()


def photograph(chromium: str, address: str, name: str) -> None:
    """Write what is at an address to docs/images, as WebP."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        command = [
            chromium,
            "--headless=new",
            "--no-sandbox",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
            f"--window-size={SIZE[0]},{SIZE[1]}",
            f"--screenshot={picture}",
            "--virtual-time-budget=8000",
            address,
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        IMAGES.mkdir(parents=True, exist_ok=True)
        with Image.open(picture) as taken:
            taken.convert("RGB").save(IMAGES / f"{name}.webp", quality=82, method=6)


if __name__ == "__main__":
    main()
