"""A PDF -> what indexing it costs, stage by stage, and how long the model waits, beside colpali-engine's own loop.

    python -m benchmarks.indexing [--pages 40] [--threads 1]                   # a tiny ColQwen2: the pipeline itself
    python -m benchmarks.indexing --model full --pages 2 --batch 1 --rounds 1  # ColQwen2-2B, random weights, CPU
    python -m benchmarks.indexing --model full --device cuda --pages 200 --batch 1 4 8 16 32 \
        --dtype bfloat16 float16 --attention sdpa eager                        # and flash_attention_2, if installed

The pages of examples/pdfs, drawn at 150 dpi a letter page, are repeated until there are enough. Models are built in
place, with random weights, and nothing is downloaded: "tiny" has 200,000 parameters, "full" the sizes of Qwen2-VL-2B.
`--pretend-ms 100` puts a stand-in into the model's place that leaves the CPU alone for so long a page, as a GPU does.
First every stage alone, in one thread: CPU milliseconds a page, medians of `--stage-rounds` over the same pages. Then,
for each setting, in one run and in turns, medians of `--rounds`:

- "pipelined": `ColQwenIndex.from_documents`, from the PDF to pages in Milvus Lite, text layer and page images included;
- "colpali-engine": the loop of its README: all pages drawn first, by pdfium too, then `DataLoader`, `process_images`,
  the model, `unbind`; no text is read, no image kept, nothing stored.

"in_model" is the share of the pipelined run's wall time that forward passes take; "outside_cpu_ms" its CPU time less
that of the thread that runs them, a page, which is right where torch computes in one thread or on a GPU. "ratio" is
colpali-engine's time to the pipelined run's: above 1 the latter is faster. Prints tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pypdfium2
import torch
from rich.console import Console
from rich.table import Table

from llama_index_colqwen import ColQwenEmbedder, ColQwenIndex, MilvusPageStore, MultiVector, PDFPageReader
from llama_index_colqwen.embedders.colqwen.preprocessing import collate, prepare_page
from llama_index_colqwen.late_interaction.pooling import pool_tokens
from llama_index_colqwen.nodes import page_from_node
from llama_index_colqwen.pages import RenderedPage
from llama_index_colqwen.reading.rendering import render_document
from tests.checkpoints import build_checkpoint

ROOT = Path(__file__).parents[1]
STAGE_PAGES = 12
# Qwen2-VL-2B's, from its published configuration.
FULL_TEXT = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
}
FULL_VISION = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4}
FULL_ROPE_SECTIONS = [16, 24, 24]


@dataclass
class Clock:
    """What forward passes took.

    Attributes:
        wall: Seconds.
        cpu: Seconds of the thread that ran them; torch's own threads are not counted.
    """

    wall: float = 0.0
    cpu: float = 0.0
    _started: list[tuple[float, float]] = field(default_factory=list)

    def start(self, *_: object) -> None:
        """Note that a forward pass begins."""
        self._started.append((time.perf_counter(), time.thread_time()))

    def stop(self, _module: object, _args: object, output: torch.Tensor) -> None:
        """Note that it ended; on a GPU, that what it started ended."""
        if output.is_cuda:
            torch.cuda.synchronize(output.device)
        wall, cpu = self._started.pop()
        self.wall += time.perf_counter() - wall
        self.cpu += time.thread_time() - cpu


def repeat_pages(pages: int, folder: Path) -> Path:
    """Write a PDF of so many pages: those of examples/pdfs, over and over."""
    pdf = pypdfium2.PdfDocument.new()
    sources = [pypdfium2.PdfDocument(path) for path in sorted((ROOT / "examples" / "pdfs").glob("*.pdf"))]
    while len(pdf) < pages:
        for source in sources:
            pdf.import_pages(source, list(range(min(len(source), pages - len(pdf)))))
    path = folder / f"{pages}-pages.pdf"
    pdf.save(path)
    return path


def build_full(folder: Path) -> Path:
    """Write a ColQwen2 of the published sizes with random weights, in bfloat16: 4.4 GB."""
    from colpali_engine.models import ColQwen2
    from transformers import AutoConfig

    build_checkpoint("ColQwen2", folder)
    written = json.loads((folder / "config.json").read_text())
    written["text_config"].update(FULL_TEXT)
    written["text_config"]["rope_parameters"]["mrope_section"] = FULL_ROPE_SECTIONS
    written["text_config"].pop("layer_types", None)  # one a layer
    written["vision_config"].update(FULL_VISION)
    (folder / "config.json").write_text(json.dumps(written))
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = ColQwen2(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 22, generator=generator, dtype=torch.float32).to(torch.bfloat16)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim < 2:
                tensor.fill_(float("norm" in name or "ln_q" in name))
            else:
                copies = -(-tensor.numel() // len(noise))
                tensor.copy_(noise.repeat(copies)[: tensor.numel()].view_as(tensor) / tensor[0].numel() ** 0.5)
    model.config.architectures = ["ColQwen2"]
    model.save_pretrained(folder)
    return folder


class Pretended(torch.nn.Module):  # type: ignore[misc]  # torch's types are skipped
    """Takes as long as a GPU would, and none of the CPU."""

    def __init__(self, seconds: float, dim: int) -> None:
        """See `--pretend-ms`."""
        super().__init__()
        self.seconds, self.dim, self.device = seconds, dim, torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        """Wait; return vectors of the right shape."""
        time.sleep(self.seconds * len(input_ids))
        return torch.ones(*input_ids.shape, self.dim)


def noise(random: np.random.Generator, tokens: int) -> MultiVector:
    """Draw unit vectors."""
    vectors = random.normal(size=(tokens, 128)).astype(np.float32)
    unit: MultiVector = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def cpu_ms(work: Callable[[], object], pages: int, repeat: int) -> float:
    """Time work over pages: CPU milliseconds a page, the median of the rounds after the first."""
    work()
    rounds = []
    for _ in range(repeat):
        started = time.process_time()
        work()
        rounds.append((time.process_time() - started) * 1e3 / pages)
    return statistics.median(rounds)


def time_stages(embedder: ColQwenEmbedder, work: Path, repeat: int, *, with_forward: bool) -> dict[str, float]:
    """Time every stage alone, in one thread."""
    stage_pdf = repeat_pages(STAGE_PAGES, work)
    reader = PDFPageReader(image_dir=work / "stages", ocr="never")
    documents = reader.load_data(stage_pdf)
    pages = [page_from_node(document) for document in documents]
    processor, family = embedder._processor, embedder._family
    prepared = [prepare_page(page, processor, family) for page in pages]
    # A page of the full model takes a minute on a CPU: noise is pooled and stored in its vectors' place.
    random = np.random.default_rng(0)
    vectors = embedder.embed_pages(pages) if with_forward else [noise(random, page.num_tokens) for page in prepared]
    with ExitStack() as stack:
        stores = [stack.enter_context(MilvusPageStore(work / f"stage-{number}.db")) for number in range(repeat + 1)]
        for store in stores:
            store.open(embedder.fingerprint)
        empty = iter(stores)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        figures = {
            "draw": cpu_ms(lambda: list(render_document(stage_pdf, "x.pdf", extract_text=False)), len(pages), repeat),
            "draw, read text, encode": cpu_ms(lambda: reader.load_data(stage_pdf), len(pages), repeat),
            "decode": cpu_ms(lambda: [page.open_image().convert("RGB") for page in pages], len(pages), repeat),
            "decode, preprocess": cpu_ms(
                lambda: [prepare_page(page, processor, family) for page in pages], len(pages), repeat
            ),
            "pool (factor 3)": cpu_ms(lambda: [pool_tokens(some, 3) for some in vectors], len(pages), repeat),
            "store": cpu_ms(lambda: next(empty).add(pages, vectors), len(pages), repeat),
        }
        if with_forward:
            model, pad = model_of(embedder), processor.tokenizer.pad_token_id
            batches = [collate([page.inputs], pad) for page in prepared]
            with torch.inference_mode():
                figures["forward"] = cpu_ms(lambda: [model(**batch) for batch in batches], len(pages), repeat)
        torch.set_num_threads(threads)
    return figures


def model_of(embedder: ColQwenEmbedder) -> Any:  # noqa: ANN401 - torch.nn.Module
    """Return the embedder's torch module."""
    replica = embedder._replicas.get()
    embedder._replicas.put(replica)
    return replica.model


@contextmanager
def clocked(model: Any) -> Iterator[Clock]:  # noqa: ANN401 - torch.nn.Module
    """Measure a model's forward passes."""
    clock = Clock()
    hooks = [model.register_forward_pre_hook(clock.start), model.register_forward_hook(clock.stop)]
    yield clock
    for hook in hooks:
        hook.remove()


def run_pipelined(embedder: ColQwenEmbedder, pdf: Path, work: Path) -> dict[str, float]:
    """Index the PDF; return wall and CPU seconds, and those of the forward passes."""
    with clocked(model_of(embedder)) as clock, tempfile.TemporaryDirectory(dir=work) as folder:
        started, cpu = time.perf_counter(), time.process_time()
        reader = PDFPageReader(image_dir=Path(folder) / "images", ocr="never")
        uri = Path(folder) / "x.db"
        index = ColQwenIndex.from_documents(reader.lazy_load_data(pdf), embedder, uri=uri, show_progress=False)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        index.store.close()
    return {"wall": wall, "cpu": cpu, "forward": clock.wall, "forward_cpu": clock.cpu}


def run_colpali_engine(embedder: ColQwenEmbedder, pdf: Path, batch_size: int) -> float:
    """Draw all pages, then embed them as colpali-engine's README does; return wall seconds."""
    from colpali_engine.utils.torch_utils import ListDataset
    from torch.utils.data import DataLoader

    model, processor = model_of(embedder), embedder._processor
    started = time.perf_counter()
    pages = render_document(pdf, pdf.name, extract_text=False)
    images = [page.image for page in pages if isinstance(page, RenderedPage)]
    loader: DataLoader[Any] = DataLoader(
        ListDataset(images),
        batch_size=batch_size,
        shuffle=False,
        collate_fn=lambda some: processor.process_images(some),
    )
    vectors: list[torch.Tensor] = []
    for batch in loader:
        with torch.no_grad():
            output = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
        vectors.extend(torch.unbind(output.to("cpu")))
    return time.perf_counter() - started


def compare(
    embedder: ColQwenEmbedder, pdf: Path, pages: int, batch_size: int, rounds: int, work: Path
) -> dict[str, float]:
    """Run both in turns; return medians."""
    ours, theirs = [], []
    if embedder.devices[0].startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    for _ in range(rounds):
        ours.append(run_pipelined(embedder, pdf, work))
        theirs.append(run_colpali_engine(embedder, pdf, batch_size))
    wall = statistics.median(run["wall"] for run in ours)
    figures = {
        "batch": batch_size,
        "pages_s": pages / wall,
        "in_model": statistics.median(run["forward"] / run["wall"] for run in ours),
        "outside_cpu_ms": statistics.median((run["cpu"] - run["forward_cpu"]) * 1e3 / pages for run in ours),
        "colpali_engine_pages_s": pages / statistics.median(theirs),
        "ratio": statistics.median(their / run["wall"] for run, their in zip(ours, theirs, strict=True)),
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    if embedder.devices[0].startswith("cuda"):
        figures["peak_gpu_gb"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print a table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=200).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, full, or a checkpoint's folder")
    parser.add_argument("--pages", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stage-rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--dtype", nargs="+", default=["auto"])
    parser.add_argument("--attention", nargs="+", default=["sdpa"])
    parser.add_argument("--device", default=None)
    parser.add_argument("--pretend-ms", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=None, help="torch's; by default its own choice")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    results: dict[str, Any] = {**vars(options), "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pdf = repeat_pages(options.pages, work)
        model = {
            "tiny": lambda: build_checkpoint("ColQwen2", work / "model"),
            "full": lambda: build_full(work / "model"),
        }
        checkpoint = model[options.model]() if options.model in model else Path(options.model)
        runs: list[dict[str, Any]] = []
        for dtype, attention in product(options.dtype, options.attention):
            embedder = ColQwenEmbedder(checkpoint, options.device, dtype, attn_implementation=attention)
            if "stages" not in results:
                results["device"] = embedder.devices[0]
                results["stages"] = time_stages(
                    embedder, work, options.stage_rounds, with_forward=options.model == "tiny"
                )
                show("CPU ms a page, one thread", [results["stages"]])
            if options.pretend_ms:
                replica = embedder._replicas.get()
                embedder._replicas.put(replace(replica, model=Pretended(options.pretend_ms / 1e3, embedder.dim)))
            for batch_size in options.batch:
                embedder.batch_size = batch_size
                figures = compare(embedder, pdf, options.pages, batch_size, options.rounds, work)
                runs.append({"dtype": str(embedder.dtype).removeprefix("torch."), "attention": attention, **figures})
            del embedder
        results["runs"] = runs
        show(f"{options.model} on {results['device']}, {options.pages} pages", runs)
    print(json.dumps(results))  # noqa: T201 - the benchmark's result
    return 0


if __name__ == "__main__":
    sys.exit(main())
