"""Synthetic pages -> what building and searching them costs, and what is found, beside exact scans and peers.

    python benchmarks/search.py --pages 1000
    python benchmarks/search.py --pages 10000 --small-pages 0
    python benchmarks/search.py --pages 30000 --small-pages 0 --methods exact-numpy ours lexical
    python benchmarks/search.py --pages 2000 --small-pages 0 --server http://127.0.0.1:19530
    python benchmarks/search.py --plot growth.png --sizes 100 300 1000 3000 10000

A page has 700 to 1030 unit vectors of 128 dims (`--pool-factor` divides them): each one of 5,000 unit centres shared by
all pages (whose coordinates decay as 1 / sqrt(1 + number)), drawn by Zipf's law from an order that is the page's own,
with noise of length .35. A query has 20 vectors of one page, with noise of length .5, and 5 of no page.

Every method runs in a process of its own (two, where building and searching are apart) with one thread, on the same
pages. Times are CPU milliseconds of that process, medians and 95th percentiles over the queries; where a server works
too, `wall` has the rest. Resident memory is that of the searching process, without the mapped files of our cache.
"recall" is the share of the exact 10 or 100 best that are found, "hit@1" how often the page of the query's vectors
comes first, "write" a page of 1030 vectors, "first answer" the seconds from opening what was built, once libraries are
imported. "one file" and "half" are the same queries with a filter, by the file (20 pages) that has the query's page and
by years that half of the pages have, over those without, in turns. "4 threads" is how many queries they answer in the
time that one thread takes for one.

- "exact-numpy": `query @ tokens.T` over all vectors in float32, then `maximum.reduceat`;
- "lexical": `ColQwenIndex` with `LexicalEmbedder`, pages of 250 words by Zipf's law from the 20,000 that a file orders
  its own way, 10 pages a file. "refresh" is `refresh_ref_docs` of 1,000 unchanged files (or all there are), "cache" its
  folder's size after each page was rewritten eight times, over its size before (with 2,000 pages at most);
- "exact-torch": padded pages, `einsum`, as colpali-engine scores them;
- "ours": `ColQwenRetriever` over Milvus Lite, nodes and all; "ours-server" over `--server`;
- "tutorial": a row a vector in Milvus Lite, HNSW, 50 hits a query vector, one query for each page that was hit;
- "qdrant", "lancedb", "fast-plaid": peers, where they are installed (`pip install qdrant-client lancedb fast-plaid`).

The tutorial's scheme and the peers do not survive large collections here: they run at `--small-pages`, beside
exact-numpy and ours at that size. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

# Before numpy and torch are imported, here and in the processes that are started.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
import numpy.typing as npt
from llama_index.core.schema import ImageNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from PIL import Image
from rich.console import Console
from rich.table import Table

from llama_index_colqwen import (
    ColQwenIndex,
    ColQwenRetriever,
    EmbedderFingerprint,
    MilvusPageStore,
    MultiVector,
    Page,
)

DIM, CENTRES = 128, 5000
_REWRITTEN_PAGES = 2000
"""With more, rewriting all of them eight times takes longer than all the rest."""
Row = dict[str, Any]
Search = Callable[[MultiVector, int], list[int]]
"""A query and how many -> the numbers of the best pages, best first."""


# ---- data


def unit(vectors: npt.NDArray[np.floating]) -> MultiVector:
    """Scale rows to length 1."""
    scaled: MultiVector = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def make_data(folder: Path, pages: int, queries: int, pool_factor: int, seed: int) -> None:
    """Write vectors, where each page's begin, queries, and each query's page."""
    random = np.random.default_rng(seed)
    centres = unit(random.normal(size=(CENTRES, DIM)) / np.sqrt(1 + np.arange(DIM)))
    shares = np.cumsum(1 / np.arange(1, CENTRES + 1))
    lengths = random.integers(700, 1031, size=pages) // pool_factor
    starts = np.concatenate([[0], np.cumsum(lengths)])
    vectors = np.memmap(folder / "vectors.f32", np.float32, "w+", shape=(int(starts[-1]), DIM))
    for start, length in zip(starts[:-1], lengths, strict=True):
        ranks = np.searchsorted(shares, random.random(length) * shares[-1])
        noise = random.standard_normal((length, DIM), dtype=np.float32) / np.sqrt(DIM)
        vectors[start : start + length] = unit(centres[random.permutation(CENTRES)[ranks]] + 0.35 * noise)
    vectors.flush()
    sources = random.integers(pages, size=queries)
    made = []
    for source in sources:
        chosen = starts[source] + random.choice(lengths[source], 20, replace=False)
        near = unit(vectors[np.sort(chosen)] + 0.5 * random.standard_normal((20, DIM)) / np.sqrt(DIM))
        made.append(np.concatenate([near, unit(random.standard_normal((5, DIM)))]))
    np.savez(folder / "data.npz", starts=starts, sources=sources, queries=np.stack(made))


class Data:
    """The pages and queries of a run; vectors stay on disk, and are not mapped: that would count as memory."""

    def __init__(self, folder: Path) -> None:
        """Open what `make_data` wrote."""
        self.folder = folder
        self._vectors = (folder / "vectors.f32").open("rb")
        with np.load(folder / "data.npz") as saved:
            self.starts, self.sources, self.queries = saved["starts"], saved["sources"], saved["queries"]

    def __len__(self) -> int:
        """Return how many pages there are."""
        return len(self.starts) - 1

    def page(self, number: int) -> MultiVector:
        """Return a page's vectors."""
        return self._rows(self.starts[number], self.starts[number + 1])

    def all_pages(self) -> MultiVector:
        """Return all vectors."""
        return self._rows(0, self.starts[-1])

    def _rows(self, start: int, end: int) -> MultiVector:
        self._vectors.seek(int(start) * DIM * 4)
        rows: MultiVector = np.fromfile(self._vectors, np.float32, (int(end) - int(start)) * DIM).reshape(-1, DIM)
        return rows

    def pages(self) -> Iterator[MultiVector]:
        """Return all pages' vectors."""
        return (self.page(number) for number in range(len(self)))


# ---- measuring


def resident_mb() -> float:
    """Return this process's resident memory, without mapped files of our cache."""
    cached, ours = 0, False
    with open("/proc/self/smaps") as maps:
        total = 0
        for line in maps:
            if line[0] in "0123456789abcdef" and "-" in line.split(" ", 1)[0]:
                ours = line.rstrip().endswith(".vectors")
            elif line.startswith("Rss:"):
                kilobytes = int(line.split()[1])
                total += kilobytes
                cached += kilobytes if ours else 0
    return (total - cached) / 1024


def disk_mb(*folders: Path) -> float:
    """Return what folders take on disk."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_blocks * 512 for path in files) / 2**20


def measure(data: Data, search: Search) -> Row:
    """Ask all queries, once to warm up and once for ten pages on the clock, and once for a hundred."""
    for query in data.queries:
        search(query, 10)
    cpu, wall, found = [], [], []
    for query in data.queries:
        started, ticked = time.process_time(), time.perf_counter()
        found.append(search(query, 10))
        cpu.append((time.process_time() - started) * 1e3)
        wall.append((time.perf_counter() - ticked) * 1e3)
    hundred = [search(query, 100) for query in data.queries]
    (data.folder / "found.json").write_text(json.dumps(hundred))
    row = {
        "p50_ms": float(np.percentile(cpu, 50)),
        "p95_ms": float(np.percentile(cpu, 95)),
        "wall_p50_ms": float(np.percentile(wall, 50)),
        "rss_mb": resident_mb(),
        "hit@1": float(np.mean([best[:1] == [source] for best, source in zip(found, data.sources, strict=True)])),
    }
    truth = data.folder / "exact.json"
    if truth.exists():
        exact = json.loads(truth.read_text())[: len(found)]
        row["recall@10"] = recall(exact, found, 10)
        row["recall@100"] = recall(exact, hundred, 100)
    return row


def recall(exact: Sequence[Sequence[int]], found: Sequence[Sequence[int]], k: int) -> float:
    """Return the share of the k best that were found, in the mean over queries."""
    shares = [len(set(one[:k]) & set(other[:k])) / len(one[:k]) for one, other in zip(exact, found, strict=True)]
    return float(np.mean(shares))


# ---- methods: each builds and searches in the process that it is called in


def exact_numpy(data: Data, _: argparse.Namespace) -> Row:
    """Scan all vectors in float32."""
    started = time.perf_counter()
    vectors, starts = data.all_pages(), data.starts[:-1]
    build = time.perf_counter() - started

    def search(query: MultiVector, k: int) -> list[int]:
        scores = np.maximum.reduceat(query @ vectors.T, starts, axis=1).sum(axis=0)
        return [int(number) for number in np.argsort(-scores, kind="stable")[:k]]

    row = {"build_s": build, "disk_mb": vectors.nbytes / 2**20, **measure(data, search)}
    (data.folder / "found.json").rename(data.folder / "exact.json")
    return {**row, "recall@10": 1.0, "recall@100": 1.0}


def exact_torch(data: Data, _: argparse.Namespace) -> Row:
    """Score as colpali-engine does: padded pages in float32, 128 at a time."""
    import torch

    torch.set_num_threads(1)
    started = time.perf_counter()
    pages = [torch.from_numpy(page) for page in data.pages()]
    padded = [
        torch.nn.utils.rnn.pad_sequence(pages[start : start + 128], batch_first=True)
        for start in range(0, len(pages), 128)
    ]
    build = time.perf_counter() - started

    def search(query: MultiVector, k: int) -> list[int]:
        asked = torch.from_numpy(query)
        scores = torch.cat([torch.einsum("nd,csd->cns", asked, some).amax(dim=2).sum(dim=1) for some in padded])
        numbers: list[int] = torch.argsort(scores, descending=True)[:k].tolist()
        return numbers

    return {"build_s": build, "disk_mb": float(data.starts[-1]) * DIM * 4 / 2**20, **measure(data, search)}


class Given:
    """An embedder of queries that are given as vectors, by number."""

    dim = DIM
    fingerprint = EmbedderFingerprint("benchmark", "1", DIM)

    def __init__(self) -> None:
        """Nothing is given yet."""
        self._given: list[MultiVector] = []

    def give(self, query: MultiVector) -> str:
        """Return a text, another each time, whose vectors these are."""
        self._given.append(query)
        return str(len(self._given) - 1)

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        """Refuse: pages' vectors are stored as they are."""
        raise NotImplementedError

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        """Return the vectors that were given."""
        return [self._given[int(query)] for query in queries]


def page_id(number: int) -> str:
    """Name a page as a reader does, by 64 digits and a number."""
    return f"{number // 20:064x}-p{number % 20 + 1:05d}"


def make_page(number: int) -> Page:
    """Make a page with 400 words of text."""
    metadata = {"file_name": f"{number // 20}.pdf", "page_label": str(number % 20 + 1), "year": 2000 + number % 20}
    text = " ".join(f"word{(number * 7919 + place) % 5000}" for place in range(400))
    node = {"id_": page_id(number), "text": text, "metadata": metadata, "class_name": "ImageNode"}
    return Page(
        page_id(number),
        page_id(number)[:64],
        f"{number // 20}.pdf",
        number % 20 + 1,
        text,
        content_hash=f"{number:x}",
        node=node,
    )


def open_store(data: Data, arguments: argparse.Namespace) -> MilvusPageStore:
    """Open ours: in the work folder, or on the server."""
    if arguments.method == "ours-server":
        options: Row = {"candidate_vectors": arguments.candidate_vectors} if arguments.candidate_vectors else {}
        return MilvusPageStore(
            arguments.server,
            collection_name=f"benchmark_{len(data)}",
            cache_dir=data.folder / "server.cache",
            **options,
        )
    return MilvusPageStore(data.folder / "ours.db")


def build_ours(data: Data, arguments: argparse.Namespace) -> Row:
    """Store all pages, 16 at a time as an index does; then 64 more of 1030 vectors, which are deleted again."""
    with open_store(data, arguments) as store:
        store.clear()
        started, ticked = time.process_time(), time.perf_counter()
        store.open(Given.fingerprint)
        for start in range(0, len(data), 16):
            numbers = range(start, min(start + 16, len(data)))
            store.add([make_page(number) for number in numbers], [data.page(number) for number in numbers])
        build, build_cpu = time.perf_counter() - ticked, time.process_time() - started
        extra = [make_page(number) for number in range(len(data), len(data) + 64)]
        full = [np.resize(data.page(number % len(data)), (1030, DIM)) for number in range(64)]
        started = time.process_time()
        for start in range(0, 64, 16):
            store.add(extra[start : start + 16], full[start : start + 16])
        write = (time.process_time() - started) * 1e3 / 64
        store.delete(page_ids=[page.page_id for page in extra])
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    folders = [data.folder / "ours.db", data.folder / "ours.cache"]
    return {
        "build_s": build,
        "build_cpu_ms": build_cpu * 1e3 / len(data),
        "write_ms": write,
        "build_peak_mb": peak,
        "disk_mb": disk_mb(*folders) if arguments.method == "ours" else disk_mb(data.folder / "server.cache"),
    }


def search_ours(data: Data, arguments: argparse.Namespace) -> Row:
    """Search what was built, in a process that starts with nothing open."""
    import milvus_lite.server_manager  # noqa: F401 - what takes seconds whatever is opened
    import pymilvus  # noqa: F401

    embedder = Given()
    numbers = {page_id(number): number for number in range(len(data))}
    started = time.perf_counter()
    store = open_store(data, arguments)
    retrievers: dict[int, ColQwenRetriever] = {}

    def search(query: MultiVector, k: int) -> list[int]:
        if k not in retrievers:
            retrievers[k] = ColQwenRetriever(store, embedder, similarity_top_k=k)
        return [numbers[hit.node_id] for hit in retrievers[k].retrieve(embedder.give(query))]

    search(data.queries[0], 10)
    first = time.perf_counter() - started
    row = measure(data, search) | measure_filters(data, store, embedder) | measure_threads(data, store)
    deleted = page_id(len(data) // 2)
    started = time.perf_counter()
    store.delete(page_ids=[deleted])
    deleting = (time.perf_counter() - started) * 1e3
    store.close()
    return {"first_answer_s": first, "delete_ms": deleting, **row}


def filtered(key: str, value: str | int, operator: FilterOperator = FilterOperator.EQ) -> MetadataFilters:
    """Make a filter of one condition."""
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


def measure_filters(data: Data, store: MilvusPageStore, embedder: Given) -> Row:
    """Ask each query without a filter, in its page's file, and in half of the pages."""
    half = filtered("year", 2010, FilterOperator.LT)
    times: dict[str, list[float]] = {"none": [], "one_file": [], "half": []}
    for turn in range(2):  # the first to warm up
        for query, source in zip(data.queries, data.sources, strict=True):
            filters = {"none": None, "one_file": filtered("file_name", f"{source // 20}.pdf"), "half": half}
            for name, some in filters.items():
                retriever = ColQwenRetriever(store, embedder, similarity_top_k=10, filters=some)
                text = embedder.give(query)
                started = time.process_time()
                retriever.retrieve(text)
                if turn:
                    times[name].append(time.process_time() - started)
    median = {name: float(np.median(some)) for name, some in times.items()}
    return {"one_file_x": median["one_file"] / median["none"], "half_x": median["half"] / median["none"]}


def measure_threads(data: Data, store: MilvusPageStore) -> Row:
    """Ask all queries in one thread and in four, in turns."""

    def ask(query: MultiVector) -> None:
        embedder = Given()
        ColQwenRetriever(store, embedder, similarity_top_k=10).retrieve(embedder.give(query))

    times: dict[int, list[float]] = {1: [], 4: []}
    for _ in range(5):
        for threads, some in times.items():
            with ThreadPoolExecutor(threads) as pool:
                started = time.perf_counter()
                list(pool.map(ask, [*data.queries] * 2))
                some.append(time.perf_counter() - started)
    return {"threads4_x": float(np.median(times[1]) / np.median(times[4]))}


def text_nodes(data: Data, picture: Path, version: int = 0) -> Iterator[ImageNode]:
    """Make pages of words, 10 a file, that all have the same picture."""
    words = np.array([f"word{number}" for number in range(20_000)])
    shares = np.cumsum(1 / np.arange(1, len(words) + 1))
    for number in range(len(data)):
        file, page = divmod(number, 10)
        if page == 0:
            order = np.random.default_rng(file).permutation(len(words))
        random = np.random.default_rng([number, version])
        # Half of them by an order that all files share: the words of the language.
        ranks = np.searchsorted(shares, random.random(250) * shares[-1])
        drawn = words[np.where(random.random(250) < 0.5, ranks, order[ranks])]
        metadata = {"file_name": f"{file}.pdf", "file_path": f"/{file}.pdf", "document_id": f"{file}"}
        yield ImageNode(
            id_=page_id(number),
            text=" ".join(drawn),
            image_path=str(picture),
            metadata={**metadata, "page_label": str(page + 1), "version": version},
        )


def build_lexical(data: Data, _: argparse.Namespace) -> Row:
    """Index pages of words; rewrite them all eight times, and then with their first words again."""
    folder = data.folder
    picture = folder / "page.jpg"
    Image.new("RGB", (85, 110), "white").save(picture)
    started = time.perf_counter()
    uri = folder / "lexical.db"
    with ColQwenIndex.from_documents(text_nodes(data, picture), uri=uri, show_progress=False):
        build = time.perf_counter() - started
    row: Row = {"build_s": build}
    if len(data) <= _REWRITTEN_PAGES:
        before = disk_mb(folder / "lexical.cache")
        with ColQwenIndex.from_existing(uri) as index:
            for version in [*range(1, 8), 0]:
                index.insert_nodes(text_nodes(data, picture, version), show_progress=False)
            row["cache_x"] = disk_mb(folder / "lexical.cache") / before
    return {**row, "disk_mb": disk_mb(uri, folder / "lexical.cache")}


def search_lexical(data: Data, _: argparse.Namespace) -> Row:
    """Ask for eight of a page's words; and refresh files that did not change."""
    import milvus_lite.server_manager  # noqa: F401 - as above
    import pymilvus  # noqa: F401

    texts = [node.text.split() for node in text_nodes(data, data.folder / "page.jpg")]
    queries = [" ".join(np.random.default_rng(source).choice(texts[source], 8)) for source in data.sources]
    started = time.perf_counter()
    index = ColQwenIndex.from_existing(data.folder / "lexical.db")
    index.as_retriever(similarity_top_k=10).retrieve(queries[0])
    first = time.perf_counter() - started
    times, made, hits = [], [], []
    for turn in range(2):  # the first to warm up
        for query, source in zip(queries, data.sources, strict=True):
            started, ticked = time.perf_counter(), time.process_time()
            retriever = index.as_retriever(similarity_top_k=10)
            built = time.perf_counter() - started
            found = retriever.retrieve(query)
            if turn:
                made.append(built * 1e3)
                times.append((time.process_time() - ticked) * 1e3)
                hits.append(found[0].node_id == page_id(source))
    files = list(text_nodes(data, data.folder / "page.jpg"))[:10_000]
    started = time.perf_counter()
    written = index.refresh_ref_docs(files, show_progress=False)
    refresh = time.perf_counter() - started
    assert not any(written)
    index.close()
    return {
        "first_answer_s": first,
        "p50_ms": float(np.percentile(times, 50)),
        "p95_ms": float(np.percentile(times, 95)),
        "hit@1": float(np.mean(hits)),
        "as_retriever_ms": float(np.median(made)),
        "refresh_s": refresh,
        "rss_mb": resident_mb(),
    }


def tutorial(data: Data, _: argparse.Namespace) -> Row:
    """Keep a row a vector in Milvus Lite with HNSW, as the Milvus tutorial does."""
    from pymilvus import DataType, MilvusClient

    path = data.folder / "tutorial.db"
    client = MilvusClient(str(path))
    schema = client.create_schema(auto_id=True, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
    schema.add_field("sequence", DataType.INT64)
    schema.add_field("page", DataType.INT64)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 500})
    started = time.perf_counter()
    client.create_collection("rows", schema=schema, index_params=index)
    for number, page in enumerate(data.pages()):
        rows = [{"vector": vector, "sequence": at, "page": number} for at, vector in enumerate(page.tolist())]
        client.insert("rows", rows)
    client.flush("rows")
    client.load_collection("rows")
    build = time.perf_counter() - started

    def search(query: MultiVector, k: int) -> list[int]:
        hits = client.search("rows", query.tolist(), limit=50, output_fields=["page"], search_params={"params": {}})
        pages = {hit["entity"]["page"] for row in hits for hit in row}

        def score(number: int) -> tuple[float, int]:
            rows = client.query("rows", filter=f"page == {number}", output_fields=["vector"], limit=1000)
            vectors = np.array([row["vector"] for row in rows], dtype=np.float32)
            return -float((query @ vectors.T).max(axis=1).sum()), number

        with ThreadPoolExecutor(max_workers=300) as pool:
            return [number for _, number in sorted(pool.map(score, pages))][:k]

    data.queries, data.sources = data.queries[:2], data.sources[:2]  # seconds each
    return {"build_s": build, "disk_mb": disk_mb(path), **measure(data, search)}


def qdrant(data: Data, _: argparse.Namespace) -> Row:
    """Search qdrant-client's local mode with its multivector MaxSim."""
    from qdrant_client import QdrantClient, models

    path = data.folder / "qdrant"
    client = QdrantClient(path=str(path))
    multi = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    started = time.perf_counter()
    client.create_collection(
        "pages", models.VectorParams(size=DIM, distance=models.Distance.DOT, multivector_config=multi)
    )
    for number, page in enumerate(data.pages()):
        client.upsert("pages", [models.PointStruct(id=number, vector=page.tolist())])
    build = time.perf_counter() - started

    def search(query: MultiVector, k: int) -> list[int]:
        return [int(point.id) for point in client.query_points("pages", query=query.tolist(), limit=k).points]

    return {"build_s": build, "disk_mb": disk_mb(path), **measure(data, search)}


def lancedb(data: Data, _: argparse.Namespace) -> Row:
    """Search LanceDB's multivectors without an index, which is exact."""
    import lancedb
    import pyarrow as pa

    path = data.folder / "lancedb"
    schema = pa.schema([("page", pa.int64()), ("vector", pa.list_(pa.list_(pa.float32(), DIM)))])
    started = time.perf_counter()
    table = lancedb.connect(str(path)).create_table("pages", schema=schema)
    for start in range(0, len(data), 64):
        numbers = range(start, min(start + 64, len(data)))
        table.add([{"page": number, "vector": data.page(number).tolist()} for number in numbers])
    build = time.perf_counter() - started

    def search(query: MultiVector, k: int) -> list[int]:
        return [row["page"] for row in table.search(query).metric("cosine").select(["page"]).limit(k).to_list()]

    return {"build_s": build, "disk_mb": disk_mb(path), **measure(data, search)}


def fast_plaid(data: Data, _: argparse.Namespace) -> Row:
    """Search fast-plaid, on the CPU."""
    import torch
    from fast_plaid import search as plaid

    torch.set_num_threads(1)
    path = data.folder / "plaid"
    started = time.perf_counter()
    index = plaid.FastPlaid(index=str(path), device="cpu")
    index.create(documents_embeddings=[torch.from_numpy(page) for page in data.pages()])
    build = time.perf_counter() - started

    def search(query: MultiVector, k: int) -> list[int]:
        found = index.search(queries_embeddings=torch.from_numpy(query)[None], top_k=k)
        return [int(number) for number, _ in found[0]]

    return {"build_s": build, "disk_mb": disk_mb(path), **measure(data, search)}


METHODS: dict[str, Sequence[Callable[[Data, argparse.Namespace], Row]]] = {
    "exact-numpy": [exact_numpy],
    "exact-torch": [exact_torch],
    "ours": [build_ours, search_ours],
    "ours-server": [build_ours, search_ours],
    "lexical": [build_lexical, search_lexical],
    "tutorial": [tutorial],
    "qdrant": [qdrant],
    "lancedb": [lancedb],
    "fast-plaid": [fast_plaid],
}
NEEDS = {"exact-torch": "torch", "qdrant": "qdrant_client", "lancedb": "lancedb", "fast-plaid": "fast_plaid"}


# ---- running


def run(method: str, work: Path, arguments: argparse.Namespace) -> Row | None:
    """Run a method in processes of its own; None if it failed or took too long, which is said."""
    if method in NEEDS and importlib.util.find_spec(NEEDS[method]) is None:
        sys.stderr.write(f"{method} is not installed\n")
        return None
    row: Row = {"method": method}
    for step in range(len(METHODS[method])):
        command = [sys.executable, __file__, "--method", method, "--step", str(step), "--work", str(work)]
        if arguments.server:
            command += ["--server", arguments.server]
        if arguments.candidate_vectors:
            command += ["--candidate-vectors", str(arguments.candidate_vectors)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=arguments.timeout, check=True)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            sys.stderr.write(f"{method}: {type(error).__name__}\n")
            return None
        row |= json.loads(done.stdout.splitlines()[-1])
    return row


def run_size(pages: int, methods: Sequence[str], arguments: argparse.Namespace) -> list[Row]:
    """Run methods on so many pages."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        work = Path(folder)
        make_data(work, pages, arguments.queries, arguments.pool_factor, arguments.seed)
        rows = []
        for method in methods:
            row = run(method, work, arguments)
            if row is not None:
                rows.append({"pages": pages, **row})
                if method != "lexical" and rows[0]["method"] == "exact-numpy":
                    rows[-1]["of_exact"] = row["p50_ms"] / rows[0]["p50_ms"]
                sys.stderr.write(f"{pages} pages: {json.dumps(rounded(rows[-1]))}\n")
            with suppress(FileNotFoundError):
                (work / "found.json").unlink()
    return rows


def rounded(row: Row) -> Row:
    """Round figures to what they are good for."""
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


FIGURES = (
    "build_s", "disk_mb", "rss_mb", "p50_ms", "p95_ms", "of_exact", "wall_p50_ms", "recall@10",
    "recall@100", "hit@1", "first_answer_s", "one_file_x", "half_x", "threads4_x", "write_ms", "delete_ms", "refresh_s",
    "as_retriever_ms", "cache_x",
)  # fmt: skip


def show(rows: Sequence[Row]) -> None:
    """Print a table and one JSON line."""
    table = Table("", *(f"{row['method']}, {row['pages']}" for row in rows))
    for name in FIGURES:
        table.add_row(name, *("" if name not in row else f"{row[name]}" for row in rows))
    Console(width=30 + 20 * len(rows)).print(table)
    print(json.dumps({"pages": rows[-1]["pages"] if rows else 0, "rows": rows}))  # noqa: T201 - the result


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw time, memory and disk over the number of pages."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    titles = {"p50_ms": "CPU ms a query (p50)", "rss_mb": "resident MB", "disk_mb": "disk MB"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            some = sorted((row for row in rows if row["method"] == method), key=lambda row: row["pages"])
            axis.plot([row["pages"] for row in some], [row[name] for row in some], "o-", label=method)
        axis.set(xscale="log", yscale="log", xlabel="pages", title=title)
        axis.grid(True, which="both", alpha=0.2)
        axis.legend()
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--small-pages", type=int, default=100, help="for the tutorial and peers; 0: not at all")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--pool-factor", type=int, default=1, help="pages have so many times fewer vectors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", help="a Milvus server's address, to run ours there too")
    parser.add_argument("--candidate-vectors", type=int, help="on the server; by default the store's own")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds a method may take")
    parser.add_argument("--folder", help="where the data go, 0.5 GB for 1,000 pages; by default the temporary folder")
    parser.add_argument("--plot", type=Path, help="a PNG of exact-numpy and ours at --sizes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000, 3000, 10000])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="at --pages; by default all but the peers")
    parser.add_argument("--method", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)

    if arguments.method:
        row = METHODS[arguments.method][arguments.step](Data(arguments.work), arguments)
        print(json.dumps(row))  # noqa: T201 - for the process that asked
        return 0
    rows: list[Row] = []
    if arguments.plot:
        for pages in arguments.sizes:
            rows += run_size(pages, ["exact-numpy", "ours"], arguments)
        plot(rows, arguments.plot)
    else:
        peers = ["tutorial", "qdrant", "lancedb", "fast-plaid"]
        if arguments.small_pages:
            rows += run_size(arguments.small_pages, ["exact-numpy", "ours", *peers], arguments)
        server = ["ours-server"] if arguments.server else []
        methods = ["exact-numpy", "exact-torch", "ours", *server, "lexical"]
        rows += run_size(arguments.pages, arguments.methods or methods, arguments)
    show([rounded(row) for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
