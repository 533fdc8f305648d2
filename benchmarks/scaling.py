"""Pages -> how many a second are indexed with 1, 2, ... actors of Ray, and where the driver becomes too slow.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.scaling   # actors that take 100 ms a page, as a GPU does
    OPENBLAS_NUM_THREADS=1 python -m benchmarks.scaling --embedder tiny   # a tiny ColQwen2, which takes the CPU
    OPENBLAS_NUM_THREADS=1 python -m benchmarks.scaling --embedder vidore/colqwen2-v1.0 --ray auto --gpus 1 \
        --actors 1 2 4 8 --workers 8 --pages 4000 --uri http://milvus:19530                            # on a cluster

The pages of examples/pdfs are repeated until there are enough, and go the whole way: from the PDF, drawn by `--workers`
processes, to pages in Milvus; "0" actors is the embedder in this process, without Ray. The actors are ready before the
clock starts. Before, the driver's two shares by themselves, which bound what any number of actors can do: drawing pages
(with text, and image files written), and storing pages of 768 vectors by one writer. "fixed" sleeps `--ms` a page and
gives 768 vectors a page. Prints tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pypdfium2
from rich.console import Console
from rich.table import Table

from llama_index_colqwen import (
    ColQwenIndex,
    EmbedderFingerprint,
    MilvusPageStore,
    MultiVector,
    MultiVectorEmbedder,
    Page,
    PDFPageReader,
    RayEmbedder,
    resolve_embedder,
)
from llama_index_colqwen.nodes import page_from_node

ROOT = Path(__file__).parents[1]
VECTORS = 768


class Fixed:
    """Takes the same time for each page, one page at a time, and leaves the CPU alone."""

    dim = 128
    candidate_vectors = 32

    def __init__(self, milliseconds: float) -> None:
        """Take so long."""
        self.fingerprint = EmbedderFingerprint("fixed", "1", self.dim)
        self._seconds = milliseconds / 1e3
        self._lock = threading.Lock()
        random = np.random.default_rng(0)
        # As those of a model, they lie near one another in groups, which is what pooling them takes its time by.
        groups = random.normal(size=(64, self.dim))[random.integers(64, size=VECTORS)]
        vectors = (groups + 0.5 * random.normal(size=(VECTORS, self.dim))).astype(np.float32)
        self._vectors: MultiVector = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock behind."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        """Wait."""
        with self._lock:
            time.sleep(self._seconds * len(pages))
        return [np.roll(self._vectors, len(page.text), axis=1) for page in pages]

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        """Give some of the vectors."""
        return [self._vectors[:20] for _ in queries]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", default="fixed", help="fixed, tiny, or what resolve_embedder takes")
    parser.add_argument("--ms", type=float, default=100, help="a page takes with the fixed embedder")
    parser.add_argument("--actors", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--ray", default="local", help="the cluster's address, or auto")
    parser.add_argument("--gpus", type=float, default=None, help="of an actor")
    parser.add_argument("--cpus", type=float, default=1, help="of an actor")
    parser.add_argument("--uri", default=None, help="a Milvus server; by default Milvus Lite, in a new folder")
    options = parser.parse_args(argv)
    results: dict[str, Any] = vars(options).copy()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pdf = repeat_pages(options.pages, work)
        make = maker(options, work)
        results["driver"] = [draw(pdf, work, options.workers), write(options, pdf, work)]
        show("The driver's shares by themselves", results["driver"])
        rows = [{"actors": count, **index_pages(options, make, pdf, work, count)} for count in options.actors]
        results["indexing"] = rows
        show(f"{options.embedder}, {options.pages} pages, the whole way", rows)
    print(json.dumps(results))  # noqa: T201 - the benchmark's result
    return 0


def repeat_pages(pages: int, folder: Path) -> Path:
    """Write a PDF of so many pages: those of examples/pdfs, over and over."""
    pdf = pypdfium2.PdfDocument.new()
    sources = [pypdfium2.PdfDocument(path) for path in sorted((ROOT / "examples" / "pdfs").glob("*.pdf"))]
    while len(pdf) < pages:
        for source in sources:
            pdf.import_pages(source, list(range(min(len(source), pages - len(pdf)))))
    path = folder / "pages.pdf"
    pdf.save(path)
    return path


def maker(options: argparse.Namespace, work: Path) -> Callable[[], MultiVectorEmbedder]:
    """Return what makes the embedder, here or in an actor."""
    if options.embedder == "fixed":
        return partial(Fixed, options.ms)
    if options.embedder == "tiny":
        from tests.checkpoints import build_checkpoint

        return partial(resolve_embedder, str(build_checkpoint("ColQwen2", work / "model")))
    return partial(resolve_embedder, options.embedder)


def new_store(options: argparse.Namespace, work: Path, name: str) -> MilvusPageStore:
    """Return a store that holds nothing."""
    store = MilvusPageStore(
        options.uri or work / f"{name}.db", collection_name=f"scaling_{name}", cache_dir=work / name
    )
    store.clear()
    return store


def index_pages(
    options: argparse.Namespace, make: Callable[[], MultiVectorEmbedder], pdf: Path, work: Path, actors: int
) -> dict[str, float]:
    """Index the PDF; return pages a second, and the driver's CPU time a page."""
    reader = PDFPageReader(image_dir=work / f"images-{actors}", ocr="never", num_workers=options.workers)
    with ExitStack() as stack:
        embedder: Any = nullcontext(make())
        if actors:
            embedder = RayEmbedder(make, actors, options.gpus, options.cpus, address=options.ray)
        chosen = stack.enter_context(embedder)
        for place in chosen._places if actors else ():
            if not place.actor.is_ready:
                chosen._admit(place, place.actor)
        store = stack.enter_context(new_store(options, work, f"actors_{actors}"))
        started, cpu = time.perf_counter(), time.process_time()
        documents = reader.lazy_load_data(pdf, show_progress=False)
        ColQwenIndex.from_documents(documents, chosen, store=store, show_progress=False)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        store.clear()
    return {"pages_s": options.pages / wall, "driver_cpu_ms": cpu * 1e3 / options.pages}


def draw(pdf: Path, work: Path, workers: int) -> dict[str, Any]:
    """Draw all pages alone."""
    reader = PDFPageReader(image_dir=work / "drawn", ocr="never", num_workers=workers)
    started, cpu = time.perf_counter(), time.process_time()
    pages = sum(1 for _ in reader.lazy_load_data(pdf, show_progress=False))
    return rate(f"draw, {workers} processes", pages, started, cpu)


def write(options: argparse.Namespace, pdf: Path, work: Path) -> dict[str, Any]:
    """Store all pages alone."""
    reader = PDFPageReader(image_dir=work / "drawn", ocr="never")
    pages = [page_from_node(document) for document in reader.load_data(pdf, show_progress=False)]
    embedder = Fixed(0)
    with new_store(options, work, "written") as store:
        store.open(embedder.fingerprint, embedder.candidate_vectors)
        started, cpu = time.perf_counter(), time.process_time()
        for start in range(0, len(pages), 16):
            some = pages[start : start + 16]
            store.add(some, embedder.embed_pages(some))
        row = rate(f"store, one writer, {'server' if options.uri else 'Milvus Lite'}", len(pages), started, cpu)
        store.clear()
    return row


def rate(name: str, pages: int, started: float, cpu: float) -> dict[str, Any]:
    """Return a row of the table."""
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"stage": name, "pages_s": pages / wall, "cpu_ms": cpu * 1e3 / pages}


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print a table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(stderr=True, width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
