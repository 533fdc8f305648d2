from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from llama_index_colqwen import ColQwenIndex, MilvusPageStore, PDFPageReader
from llama_index_colqwen.shared_index import SharedIndex
from tests.documents import write_text_pdf

SAMPLES = Path(__file__).parents[2] / "examples" / "pdfs"

HTML = "<img src=x onerror=document.title=1>"
"""Would do something, if it were read as HTML."""

MakeApp: TypeAlias = Callable[..., Any]


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index: a sample, a file whose name and text are HTML, and one that is gone with its picture."""
    folder = tmp_path_factory.mktemp("web")
    write_text_pdf(folder / f"{HTML}.pdf", f"Zebras say {HTML} <b>aloud</b>")
    gone = write_text_pdf(folder / "gone.pdf", "Walruses have left")
    files = [str(SAMPLES / "tidal-sensors-paper.pdf"), str(folder / f"{HTML}.pdf"), str(gone)]
    documents = PDFPageReader(image_dir=folder / "pages.images", ocr="never").load_data(files, show_progress=False)
    ColQwenIndex.from_documents(documents, uri=folder / "pages.db", show_progress=False).close()
    gone.unlink()
    with ColQwenIndex.from_existing(folder / "pages.db") as index:
        [node] = [node for node in index.nodes() if node.metadata["file_name"] == "gone.pdf"]
    Path(str(node.image_path)).unlink()
    return folder


@pytest.fixture
def copied(indexed: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(indexed, tmp_path / "copy"))


@contextmanager
def make_app(folder: Path, **options: Any) -> Iterator[Any]:  # noqa: ANN401 - create_app's
    """Make the application of a folder's index; whoever runs it closes it."""
    from llama_index_colqwen.web.app import create_app
    from llama_index_colqwen.web.uploads import Uploads

    with MilvusPageStore(folder / "pages.db") as store:
        shared = SharedIndex(store)
        assert store.image_dir is not None
        yield create_app(shared, Uploads(shared, folder / "pages.uploads", store.image_dir), **options)
