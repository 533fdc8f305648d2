"""Requests of many clients -> how many a service answers a second, and how much longer a page takes than in process.

    python -m benchmarks.serving [--clients 1 8 32] [--seconds 4] [--rounds 3]
    python -m benchmarks.serving --model vidore/colqwen2-v1.0 --device cuda --threads 0   # where there is a GPU

Two services are started on loopback, each a process with the model and one torch thread: one that batches what its
clients ask for together, and one whose batches are of one. They are asked in turns by clients in this process, on a
connection each (by aiohttp, which takes little of the processor from the service): a client sends a text, or a page,
reads the answer, and sends the next. Latencies are the clients', medians over the rounds. Then the pages of
examples/pdfs are embedded one at a time, in turns in process and by the batching service through `EndpointEmbedder`, as
itself and at /pooling: "overhead" is the ratio of the first two medians, less one. The default model is a ColQwen2 of
200,000 parameters with random weights, built in place: the less the model computes, the more the service shows. Prints
tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from llama_index_colqwen import ColQwenEmbedder, EndpointEmbedder, Page, PDFPageReader
from llama_index_colqwen.nodes import page_from_node

ROOT = Path(__file__).parents[1]
QUESTION = "Which sensor drifted least in the salt-spray test, and by how much?"
out = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start both services, ask them, and print what came of it."""
    options = parse(arguments)
    if options.serve is not None:
        serve(options)
        return 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if options.model == "tiny":
            from tests.checkpoints import build_checkpoint

            options.model = str(build_checkpoint("ColQwen2", Path(folder) / "tiny"))
        names = {"on": stack.enter_context(started(options, "on")), "off": stack.enter_context(started(options, "off"))}
        for url in names.values():
            wait_until_ready(url)
        pages = [page_from_node(document) for document in PDFPageReader(ocr="never").load_data(ROOT / "examples/pdfs")]
        loads = [
            measure_load(names, kind, clients, pages, options)
            for kind in ("text", "page")
            for clients in options.clients
        ]
        overhead = measure_overhead(names["on"], pages, options)
        sizes = measure_sizes(names["on"], pages[0])
    show(loads, overhead, sizes)
    print(json.dumps({"model": options.model_name, "loads": loads, "overhead": overhead, "bytes": sizes}))  # noqa: T201
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a hub id or a folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch's, of each process; 0 for its default")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=4, help="of each load and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pages", type=int, default=17, help="how many pages the overhead is measured on")
    parser.add_argument("--serve", choices=["on", "off"], help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.model_name = options.model
    return options


def make_embedder(options: argparse.Namespace) -> ColQwenEmbedder:
    """Load the model, with so many threads."""
    embedder = ColQwenEmbedder(options.model, device=options.device)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    return embedder


def serve(options: argparse.Namespace) -> None:
    """Be one of the services, on a socket that was opened by the benchmark."""
    from llama_index_colqwen.serving.app import Batching, create_app
    from llama_index_colqwen.serving.server import make_server

    batching = Batching() if options.serve == "on" else Batching(max_texts=1, max_pages=1, max_wait=0)
    make_server(create_app(make_embedder(options), batching=batching)).run(sockets=[socket.socket(fileno=options.fd)])


@contextmanager
def started(options: argparse.Namespace, batching: str) -> Iterator[str]:
    """Run a service in a process of its own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.set_inheritable(True)
        command = [sys.executable, "-m", "benchmarks.serving", "--serve", batching, "--fd", str(taken.fileno())]
        command += ["--model", options.model, "--device", options.device, "--threads", str(options.threads)]
        environment = dict(os.environ)
        if options.threads:
            environment |= {"OMP_NUM_THREADS": str(options.threads), "OPENBLAS_NUM_THREADS": str(options.threads)}
        with subprocess.Popen(
            command, pass_fds=[taken.fileno()], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
        ) as process:
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            try:
                yield url
            finally:
                process.terminate()


def wait_until_ready(url: str) -> None:
    """Wait while a service loads its model."""
    for _ in range(3000):
        try:
            httpx.get(f"{url}/ready", timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    sys.exit(f"the service at {url} did not start")


def measure_load(
    urls: dict[str, str], kind: str, clients: int, pages: Sequence[Page], options: argparse.Namespace
) -> dict[str, Any]:
    """Let so many clients ask, of either service in turns."""
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in urls}
    batches: dict[str, float] = {}
    for round_ in range(options.rounds):
        for name, url in urls.items():
            before = batched(url, kind)
            latencies, seconds = asyncio.run(closed_loop(url, kind, clients, pages, options.seconds))
            after = batched(url, kind)
            batches[name] = (after[0] - before[0]) / max(1.0, after[1] - before[1])
            p50, p95 = np.percentile(latencies, [50, 95])
            measured[name].append((len(latencies) / seconds, float(p50), float(p95)))
            out.print(f"{kind} x {clients}, batching {name}, round {round_ + 1}: {measured[name][-1][0]:.1f} a second")
    figures: dict[str, Any] = {"kind": kind, "clients": clients}
    for name, rounds in measured.items():
        rate, p50, p95 = (statistics.median(values) for values in zip(*rounds, strict=True))
        figures[name] = {"per_s": rate, "p50_ms": p50, "p95_ms": p95, "items_a_batch": batches[name]}
    figures["ratio"] = figures["on"]["per_s"] / figures["off"]["per_s"]
    return figures


async def closed_loop(
    url: str, kind: str, clients: int, pages: Sequence[Page], seconds: float
) -> tuple[list[float], float]:
    """Let each client ask again as soon as it is answered; return latencies in milliseconds, and how long it took."""
    images = [base64.b64encode(page.read_image()).decode("ascii") for page in pages]
    options = {"encoding": "base64-float16", "return_scores": False}
    latencies: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(turn: int) -> None:
            what = {"text": [f"{QUESTION} {turn}"]} if kind == "text" else {"image": [images[turn % len(images)]]}
            async with session.post(url, json={**options, **what}) as response:
                response.raise_for_status()
                await response.read()

        await asyncio.gather(*(ask(client) for client in range(clients)))  # connections are open, and caches warm
        started_at = time.perf_counter()

        async def client(number: int) -> None:
            turn = number
            while (begun := time.perf_counter()) < started_at + seconds:
                await ask(turn)
                latencies.append((time.perf_counter() - begun) * 1000)
                turn += clients

        await asyncio.gather(*(client(number) for number in range(clients)))
        return latencies, time.perf_counter() - started_at


def batched(url: str, kind: str) -> tuple[float, float]:
    """Read from a service's metrics how many items went through the model, and in how many batches."""
    text = httpx.get(f"{url}/metrics").text
    label = "image" if kind == "page" else kind
    found = [
        re.search(rf'^colqwen_batch_items_{what}{{kind="{label}"}} (\S+)$', text, re.MULTILINE)
        for what in ("sum", "count")
    ]
    items, count = (float(match[1]) if match else 0.0 for match in found)
    return items, count


def measure_overhead(url: str, pages: Sequence[Page], options: argparse.Namespace) -> dict[str, float]:
    """Embed pages one at a time, in turns in process, by the service, and by it as if it were a vLLM server."""
    here: list[float] = []
    there: list[float] = []
    pooled: list[float] = []
    embedder = make_embedder(options)
    chosen = [pages[number % len(pages)] for number in range(options.pages)]
    with EndpointEmbedder(url) as remote, EndpointEmbedder(url, api="pooling") as pooling:
        for one in (embedder, remote, pooling):
            one.embed_pages(chosen[:1])
        for _ in range(options.rounds):
            for page in chosen:
                for one, times in ((embedder, here), (remote, there), (pooling, pooled)):
                    begun = time.perf_counter()
                    one.embed_pages([page])
                    times.append((time.perf_counter() - begun) * 1000)
    in_process, served = statistics.median(here), statistics.median(there)
    return {
        "in_process_ms": in_process,
        "served_ms": served,
        "overhead": served / in_process - 1,
        "pooling_ms": statistics.median(pooled),
    }


def measure_sizes(url: str, page: Page) -> dict[str, int]:
    """Ask for one page's vectors in either encoding; return the lengths of the answers."""
    request = {"image": [base64.b64encode(page.read_image()).decode("ascii")]}
    return {
        encoding: len(httpx.post(url, json={**request, "encoding": encoding}, timeout=600).content)
        for encoding in ("float", "base64-float16")
    }


def show(loads: Sequence[dict[str, Any]], overhead: dict[str, float], sizes: dict[str, int]) -> None:
    """Print tables."""
    table = Table("each sends a", "clients", "batching", "requests/s", "p50 ms", "p95 ms", "items a batch", "on / off")
    for load in loads:
        for name in ("on", "off"):
            figures = load[name]
            cells = [f"{figures['per_s']:.1f}", f"{figures['p50_ms']:.1f}", f"{figures['p95_ms']:.1f}"]
            ratio = f"{load['ratio']:.2f}" if name == "on" else ""
            table.add_row(load["kind"], str(load["clients"]), name, *cells, f"{figures['items_a_batch']:.1f}", ratio)
    out.print(table)
    out.print(
        f"a page, alone: {overhead['in_process_ms']:.1f} ms in process, {overhead['served_ms']:.1f} ms served: "
        f"{overhead['overhead']:+.1%}, {overhead['pooling_ms']:.1f} ms at /pooling; its answer: "
        f"{sizes['float']:,} bytes as floats, {sizes['base64-float16']:,} as float16"
    )


if __name__ == "__main__":
    sys.exit(main())
