"""A page that was found -> what explaining it and drawing the picture cost: by words, and by a visual model's patches.

    OMP_NUM_THREADS=1 python benchmarks/explain.py

Median CPU time, the decoding of the page's image included.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from llama_index_colqwen import ColQwenEmbedder, ColQwenIndex, LexicalEmbedder, PDFPageReader

EXAMPLES = Path(__file__).parents[1] / "examples"
QUESTION = "the page with a red bar chart of sensors"
REPEATS = 21


def cpu_ms(work: Callable[[], object]) -> float:
    """Return the median CPU time of some calls."""
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        times.append(1000 * (time.process_time() - started))
    return statistics.median(times)


def main() -> None:
    """Print a line for each embedder and page."""
    with tempfile.TemporaryDirectory() as folder:
        documents = PDFPageReader(image_dir=Path(folder) / "pages", ocr="never").load_data(EXAMPLES / "pdfs")
        for embedder in (LexicalEmbedder(), ColQwenEmbedder(str(EXAMPLES / "tiny_visual" / "checkpoint"))):
            uri = Path(folder) / f"{type(embedder).__name__}.db"
            with ColQwenIndex.from_documents(documents, embedder=embedder, uri=uri, show_progress=False) as index:
                for hit in index.as_retriever().retrieve(QUESTION):
                    why = index.explain(QUESTION, hit)
                    explained = cpu_ms(lambda hit=hit, index=index: index.explain(QUESTION, hit))  # type: ignore[misc]
                    print(  # noqa: T201
                        f"{len(why.boxes)} {why.kind}, page image {why.image_size}: explain {explained:.1f} ms, "
                        f"to_image {cpu_ms(why.to_image):.1f} ms"
                    )


if __name__ == "__main__":
    main()
