"""Page images and queries -> multi-vectors, by ColQwen2 and its family (colpali-engine).

Knows nothing of files, Milvus or LlamaIndex; `checkpoints` knows where models come from.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from llama_index_colqwen.concurrency import Lock, after_fork, gather, look_ahead
from llama_index_colqwen.embedders.colqwen.attention import AttentionOption
from llama_index_colqwen.embedders.colqwen.checkpoints import import_colpali_engine, load_model
from llama_index_colqwen.embedders.colqwen.preprocessing import (
    DEFAULT_VISUAL_TOKENS,
    PreparedPage,
    cap_visual_tokens,
    collate,
    image_area,
    prepare_page,
)
from llama_index_colqwen.embedders.colqwen.quantization import check_quantization, quantize
from llama_index_colqwen.embedders.devices import (
    Dtype,
    Replica,
    begin_after_fork,
    check_process,
    choose_devices,
    choose_dtype,
    dispatch,
    dtype_name,
    empty_cache,
    is_out_of_memory,
    place,
)
from llama_index_colqwen.embedders.scoring import maxsim_on_device
from llama_index_colqwen.errors import DeviceMemoryError, InvalidOptionError, ModelError, QueryError, check_count
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.maxsim import Scorer
from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, MultiVector, PageVectors
from llama_index_colqwen.late_interaction.pooling import pool_tokens
from llama_index_colqwen.pages import Page

if TYPE_CHECKING:
    import torch

__all__ = ["ColQwenEmbedder"]

_log = logging.getLogger(__name__)

_MAX_QUERY_TOKENS = 512
_QUERY_BATCH = 32
_MAX_WORKERS = 8

_Key = TypeVar("_Key")


class ColQwenEmbedder:
    """Embed pages as pictures, with ColQwen2 or any model of colpali-engine's.

    ColQwen2, ColQwen2.5, ColPali, ColSmol (ColIdefics3), ColModernVBert, ColQwen3, ColQwen3.5: full checkpoints and
    LoRA adapters, from the hub (`HF_HUB_OFFLINE=1` for the local cache alone) or from a folder. Code of a checkpoint is
    never run, and only `.safetensors` are read. Weights that are missing or untrained are an error, never a warning.
    What a published checkpoint needs besides its architecture is in a table, by its hub id (`models.PUBLISHED`).

    Safe for many threads. Vectors do not depend on the batch or the other pages in it. In a process that is forked off
    (gunicorn's --preload, Celery, multiprocessing) a model on the CPU computes with one thread, and one on a GPU is an
    error: load the embedder there, after the fork.

    Args:
        model_name: A hub id or a folder.
        device: "cuda", "cuda:1", "mps", "cpu", or a list of devices, which then share the pages; by default the first
            GPU, else MPS, else the CPU.
        dtype: "auto" is bfloat16 where the device computes in it, else float16; float32 on the CPU.
        batch_size: Pages a forward pass; it halves itself when the device's memory does not suffice, and goes on.
        max_visual_tokens: Page images are scaled down, their aspect ratio kept, to at most this many visual tokens,
            and so a page has that many vectors; by default as many as the model was published with, or 768. Models that
            scale pages to a square or cut them into tiles (ColPali, ColSmol, ColModernVBert) have their own number.
        query_prefix: What is put before a query; "auto" is what the model's family was trained with: "Query: " for
            ColQwen2, ColQwen2.5, ColPali and ColSmol, else nothing.
        pool_factor: Keep a page's vectors divided by this, by clustering (see `pooling`); 1 keeps all. Pages then have
            no patch grid.
        revision: A branch, tag or commit on the hub.
        attention: How the language model's full-attention layers attend. "auto" is as published, or as the checkpoint's
            config.json declares (`retrieval_attention_contract`); where that leaves a doubt, the model is refused.
            "bidirectional": tokens see all others. "causal": as colpali-engine builds the model.
        dim: Keep so many of the first values of every vector, for models that were trained for that (Matryoshka); by
            default as published, or all.
        local_files_only: Take models from the local cache, and do not ask the hub, as `HF_HUB_OFFLINE=1` has it.
        device_map: For a model that no single GPU holds: "auto" splits it over the GPUs, and the CPU if need be; or the
            devices of its parts, as accelerate takes them. Instead of `device`.
        load_in_4bit: Round the weights of linear layers to 4 bits (NF4), on NVIDIA GPUs (extra `[quantized]`). The
            machine's memory holds the whole model before. Vectors are near to those of the exact weights, as with a
            smaller dtype, and have the same fingerprint.
        load_in_8bit: As that, to 8 bits (LLM.int8()).
        score_on_device: Whether retrievers score pages on the (first) device, which is for GPUs and many pages; the
            extra `[kernels]` has faster kernels. By default numpy does it.
        attn_implementation: "sdpa", "eager" or "flash_attention_2"; by default transformers chooses.
        allow_untrained: Admit a base to train from, such as `vidore/colqwen2-base`; a projection that it lacks is drawn
            from a fixed seed.

    Raises:
        MissingDependencyError: If the extra `[colqwen]`, or `[quantized]` where need be, is not installed, or torch and
            torchvision do not fit.
        ModelNotFoundError: If there is no such model here or on the hub, or the hub cannot be reached.
        IncompleteWeightsError: If weights are missing, left over, unreadable or untrained.
        DeviceMemoryError: If the model does not fit the device.
        ModelError: If the model cannot be loaded for another reason.
        InvalidOptionError: If an option has no such value.
    """

    def __init__(
        self,
        model_name: str | Path = "vidore/colqwen2-v1.0",
        device: str | Sequence[str] | None = None,
        dtype: Dtype = "auto",
        batch_size: int = 4,
        max_visual_tokens: int | None = None,
        query_prefix: str = "auto",
        pool_factor: int = 1,
        *,
        revision: str | None = None,
        attention: AttentionOption = "auto",
        dim: int | None = None,
        attn_implementation: str | None = None,
        allow_untrained: bool = False,
        local_files_only: bool = False,
        device_map: Literal["auto"] | Mapping[str, str | int] | None = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        score_on_device: bool = False,
    ) -> None:
        """Load the model; see the class for the arguments."""
        check_count("batch_size", batch_size)
        check_count("pool_factor", pool_factor)
        import_colpali_engine()
        self.model_name = str(model_name)
        self._made_with: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "batch_size": batch_size,
            "max_visual_tokens": max_visual_tokens,
            "query_prefix": query_prefix,
            "pool_factor": pool_factor,
            "revision": revision,
            "attention": attention,
            "dim": dim,
            "attn_implementation": attn_implementation,
            "allow_untrained": allow_untrained,
            "local_files_only": local_files_only,
            "device_map": device_map,
            "load_in_4bit": load_in_4bit,
            "load_in_8bit": load_in_8bit,
            "score_on_device": score_on_device,
        }
        if device is not None and device_map is not None:
            raise InvalidOptionError("device puts a model on one device, device_map splits it: give one of them.")
        if load_in_4bit and load_in_8bit:
            raise InvalidOptionError("load_in_4bit and load_in_8bit exclude each other: give one of them.")
        bits = 4 if load_in_4bit else 8 if load_in_8bit else None
        self.devices = choose_devices(device)
        self.dtype = choose_dtype(dtype, self.devices[0])
        if bits is not None:
            check_quantization(bits, self.devices, split=device_map is not None)
        loaded = load_model(
            self.model_name,
            revision,
            dtype=self.dtype,
            attn_implementation=attn_implementation,
            allow_untrained=allow_untrained,
            attention=attention,
            dim=dim,
            local_files_only=local_files_only,
        )
        if bits is not None:
            quantize(loaded.model, bits, keep=loaded.family.projection)
        self.batch_size = batch_size
        self.query_prefix = loaded.family.query_prefix if query_prefix == "auto" else query_prefix
        self.pool_factor = pool_factor
        self.dim = loaded.dim
        if max_visual_tokens is None:
            published = loaded.published and loaded.published.visual_tokens
            max_visual_tokens = published or DEFAULT_VISUAL_TOKENS
        self.max_visual_tokens = cap_visual_tokens(loaded.processor, loaded.family, max_visual_tokens, self.model_name)
        self.fingerprint = loaded.checkpoint.fingerprint(
            loaded.family.model,
            loaded.revision,
            loaded.dim,
            {
                "library": "colpali-engine",
                "query_prefix": self.query_prefix,
                "max_visual_tokens": self.max_visual_tokens,
                "pool_factor": pool_factor,
                "allow_untrained": allow_untrained,
                # Left out of what was made before there was the option, which so stays equal.
                **({"attention": loaded.attention} if loaded.attention != "causal" else {}),
            },
        )
        """The model, its weights, and the options that change vectors: neither device nor dtype nor batch size."""
        self._family = loaded.family
        self._processor = loaded.processor
        self._special_tokens = _special_tokens(loaded.processor)
        self._num_workers = min(_MAX_WORKERS, os.cpu_count() or 1)
        # Held at a fork: a tokenizer that was at work has locks of its own, which nobody would open in the child.
        self._processor_lock = Lock(hold=True)
        self._workers_lock = Lock()
        self._process = os.getpid()
        if device_map is None:
            self._placed = place(loaded.model, self.devices, self.model_name)
        else:
            self._placed = [dispatch(loaded.model, device_map, self.model_name)]
            self.devices = [self._placed[0].device]
        self.maxsim_scores: Scorer | None = self._score_on_device if score_on_device else None
        """What retrievers score pages with; None leaves it to numpy."""
        self._begin()
        after_fork(self._begin_after_fork)

    def _score_on_device(
        self, query: MultiVector, pages: Sequence[MultiVector | EncodedVectors]
    ) -> npt.NDArray[np.float32]:
        self._check_process()
        return maxsim_on_device(query, pages, self.devices[0])

    def _begin(self) -> None:
        self._started_workers: ThreadPoolExecutor | None = None
        self._of_thread = threading.local()
        self._replicas: queue.SimpleQueue[Replica] = queue.SimpleQueue()
        for replica in self._placed:
            self._replicas.put(replica)

    def _begin_after_fork(self) -> None:
        self._begin()
        begin_after_fork()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what the embedder was made with, not its weights: unpickled, it loads the model."""
        return partial(type(self), self.model_name, **self._made_with), ()

    @classmethod
    def from_fingerprint(cls, fingerprint: EmbedderFingerprint) -> ColQwenEmbedder:
        """Load the embedder that a fingerprint describes, at the same revision.

        Raises:
            ModelNotFoundError: If the model is not where it was.
        """
        options: dict[str, Any] = {
            name: fingerprint.options[name]
            for name in ("query_prefix", "max_visual_tokens", "pool_factor", "allow_untrained")
            if fingerprint.options.get(name) is not None
        }
        options |= {"attention": fingerprint.options.get("attention", "causal"), "dim": fingerprint.dim}
        if fingerprint.location:
            return cls(fingerprint.location, **options)
        return cls(fingerprint.model, revision=fingerprint.revision, **options)

    # ---- pages

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        """Embed page images.

        Returns:
            For each page `PageVectors`: float32, shape (num_tokens, dim), unit rows, no padding, with the patch grid
            (None where tokens are pooled). Rows are in colpali-engine's order, but that the patches of models that cut
            pages into tiles are put line by line.

        Raises:
            UnreadableDocumentError: If a page's image is gone or cannot be decoded.
            DeviceMemoryError: If a single page does not fit the device.
            ModelError: If the model computes vectors that are not finite, or is on a GPU and this process a fork.
        """
        # Pages of similar size together: the fewer tokens of padding, the less is computed for nothing.
        order = sorted(range(len(pages)), key=lambda position: image_area(pages[position]))
        vectors = dict(self._stream((position, pages[position]) for position in order))
        return [vectors[position] for position in range(len(pages))]

    def stream_pages(self, pages: Iterable[Page]) -> Iterator[tuple[Page, MultiVector]]:
        """Embed pages as they come: images are decoded and preprocessed ahead, while the model computes.

        Memory is bounded by a few batches. Pages of similar size are batched together, so the order is not kept.

        Yields:
            Each page with its vectors, as `embed_pages` gives them.
        """
        return self._stream((page, page) for page in self._by_size(pages))

    def prepare_page(self, page: Page) -> Future[PreparedPage]:
        """Decode and preprocess a page's image in a worker thread: what `embed_prepared` takes.

        For callers that make batches of their own, such as a service. A prepared page holds up to 15 MB.

        Returns:
            A future that raises UnreadableDocumentError if the image is gone or cannot be decoded.
        """
        self._check_process()
        return self._workers.submit(self._prepare, page)

    def embed_prepared(self, prepared: Sequence[PreparedPage]) -> list[MultiVector]:
        """Run prepared pages through the model, as one batch unless there are more than `batch_size`.

        Returns:
            What `embed_pages` does.

        Raises:
            DeviceMemoryError: If a single page does not fit the device.
            ModelError: If the model computes vectors that are not finite.
        """
        return [self._finish(page, rows) for page, rows in zip(prepared, self._forward_split(prepared), strict=True)]

    def _by_size(self, pages: Iterable[Page]) -> Iterator[Page]:
        for window in gather(pages, 4 * self.batch_size, first=self.batch_size):
            yield from sorted(window, key=image_area)

    def _stream(self, pages: Iterable[tuple[_Key, Page]]) -> Iterator[tuple[_Key, MultiVector]]:
        if self.pool_factor == 1:
            for batch in self._compute(pages):
                yield from ((key, self._finish(page, vectors)) for key, page, vectors in batch)
            return
        # The tokens of one batch are pooled while the model has the next.
        with _stopped_at_exit(ThreadPoolExecutor(self._num_workers, "colqwen-pool")) as pool:
            finishing = (
                [(key, pool.submit(self._finish, page, vectors)) for key, page, vectors in batch]
                for batch in self._compute(pages)
            )
            for finished in look_ahead(finishing, 1):
                yield from ((key, vectors.result()) for key, vectors in finished)

    def _compute(self, pages: Iterable[tuple[_Key, Page]]) -> Iterator[list[tuple[_Key, PreparedPage, MultiVector]]]:
        """Prepare ahead in worker threads; run the model here, or for several devices in a thread for each."""
        devices = len(self.devices)
        # What is in work: a batch or more for every device, and as many as keep all workers busy.
        ahead = devices + -(-self._num_workers // self.batch_size)
        preparing = (
            [(key, self.prepare_page(page)) for key, page in batch] for batch in gather(pages, self.batch_size)
        )
        batches = look_ahead(preparing, ahead)
        if devices == 1:
            yield from map(self._embed, batches)
            return
        with _stopped_at_exit(ThreadPoolExecutor(devices, "colqwen-forward")) as forward:
            for computing in look_ahead((forward.submit(self._embed, batch) for batch in batches), devices):
                yield computing.result()

    def _embed(
        self, batch: Sequence[tuple[_Key, Future[PreparedPage]]]
    ) -> list[tuple[_Key, PreparedPage, MultiVector]]:
        prepared = [future.result() for _, future in batch]
        keys = [key for key, _ in batch]
        return list(zip(keys, prepared, self._forward_split(prepared), strict=True))

    @property
    def _workers(self) -> ThreadPoolExecutor:
        with self._workers_lock:
            if self._started_workers is None:
                self._started_workers = self._start_workers()
            return self._started_workers

    def _start_workers(self) -> ThreadPoolExecutor:
        """Start threads in which torch computes by itself: the parallelism is over pages."""
        import torch

        threads, started = torch.get_num_threads(), threading.Barrier(self._num_workers + 1)

        def start() -> None:
            torch.set_num_threads(1)
            started.wait()

        pool = ThreadPoolExecutor(self._num_workers, "colqwen-prepare", start)
        for _ in range(self._num_workers):
            pool.submit(int)
        started.wait()
        # A thread's setting is its own, but also what threads that are made later begin with.
        torch.set_num_threads(threads)
        return pool

    def _prepare(self, page: Page) -> PreparedPage:
        """Decode and preprocess one page, in a worker thread."""
        prepared = prepare_page(page, self._thread_processor(), self._family)
        return replace(prepared, inputs={name: self._ready(tensor) for name, tensor in prepared.inputs.items()})

    def _ready(self, tensor: torch.Tensor) -> torch.Tensor:
        """Make what a device takes fastest: in its dtype and, for a GPU, in pinned memory, which it reads itself."""
        if tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        return tensor.pin_memory() if self.devices[0].startswith("cuda") else tensor

    def _thread_processor(self) -> Any:  # noqa: ANN401 - an optional package's type
        """Return this thread's copy of the processor: tokenizers are not thread-safe."""
        if not hasattr(self._of_thread, "processor"):
            with self._processor_lock:
                self._of_thread.processor = deepcopy(self._processor)
        return self._of_thread.processor

    # ---- queries

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        """Embed queries: float32, shape (num_tokens, dim), unit rows, no padding; with the model's suffix tokens.

        What looks like one of the model's special tokens in a query is read as text. Of a query of more than 512 tokens
        the beginning is used, with a warning.

        Raises:
            QueryError: If a query is blank.
            ModelError: If the model computes vectors that are not finite, or is on a GPU and this process a fork.
        """
        texts = []
        for query in queries:
            with self._processor_lock:
                texts.append(self.query_prefix + self._sanitise(query))
        vectors: list[MultiVector] = []
        for start in range(0, len(texts), _QUERY_BATCH):
            with self._processor_lock:
                inputs = dict(self._processor.process_queries(texts[start : start + _QUERY_BATCH]))
            if self._family.layout == "square":
                # Without them PaliGemma attends both ways in a query alone, and one way in a padded batch.
                inputs["token_type_ids"] = inputs["input_ids"].new_zeros(inputs["input_ids"].shape)
            vectors.extend(self._forward(inputs))
        return vectors

    def query_tokens(self, query: str) -> list[str]:
        """Return the piece of the query that each row of its multi-vector stands for; "" for what the model adds.

        That is the prefix, and the tokens before and after. Of a letter that takes several tokens, each is U+FFFD.
        """
        with self._processor_lock:
            text = self.query_prefix + self._sanitise(query)
            inputs = self._processor.process_queries([text])
            tokenizer = self._processor.tokenizer
            ids = inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist()
            special = set(tokenizer.added_tokens_decoder)
            pieces = ["" if token in special else str(tokenizer.decode([token])) for token in ids]
        before = len(self.query_prefix.strip())
        read = 0
        for number, piece in enumerate(pieces):
            piece = pieces[number] = piece.strip()
            if piece and read < before:
                read += len(piece)
                pieces[number] = ""
        return pieces

    def _sanitise(self, query: str) -> str:
        if not isinstance(query, str) or not query.strip():
            raise QueryError("The query is empty.")
        tokenizer = self._processor.tokenizer
        query = query.encode("utf-8", "replace").decode("utf-8")  # half a letter is none
        for special in self._special_tokens:
            # A space within, and it is a special token no more.
            query = query.replace(special, f"{special[0]} {special[1:]}")
        offsets = tokenizer(query, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(offsets) > _MAX_QUERY_TOKENS:
            warnings.warn(
                f"The query has {len(offsets)} tokens; the first {_MAX_QUERY_TOKENS} are used.",
                UserWarning,
                stacklevel=3,
            )
            query = query[: offsets[_MAX_QUERY_TOKENS - 1][1]]
        return query

    # ---- the model

    def _check_process(self) -> None:
        check_process(self._process, self.devices, self.model_name)

    def _forward_split(self, prepared: Sequence[PreparedPage]) -> list[MultiVector]:
        """Run pages through the model, in as many parts as the device's memory asks for."""
        if len(prepared) > self.batch_size:
            middle = len(prepared) // 2
            return self._forward_split(prepared[:middle]) + self._forward_split(prepared[middle:])
        try:
            return self._forward([page.inputs for page in prepared])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(prepared) == 1:
                raise DeviceMemoryError(
                    f"A page of {prepared[0].num_tokens} tokens does not fit the memory of {self.devices[0]} beside "
                    f"{self.model_name} in {dtype_name(self.dtype)}: lower max_visual_tokens, take a smaller dtype or "
                    "model, or a device with more memory."
                ) from error
        # Out of the handler: the error's traceback holds the tensors that filled the memory.
        self.batch_size = max(1, len(prepared) // 2)
        _log.warning(
            "A batch of %d pages does not fit %s; going on with %d.", len(prepared), self.devices[0], self.batch_size
        )
        empty_cache(self.devices)
        return self._forward_split(prepared)

    def _finish(self, page: PreparedPage, vectors: MultiVector) -> MultiVector:
        if self.pool_factor > 1:
            return PageVectors(pool_tokens(vectors, self.pool_factor))
        return PageVectors(vectors if page.order is None else vectors[page.order], page.patch_grid)

    def _forward(self, inputs: Mapping[str, torch.Tensor] | Sequence[Mapping[str, torch.Tensor]]) -> list[MultiVector]:
        """Run a batch, or pages yet to be batched, on a free device; strip padding, and normalise."""
        import torch

        self._check_process()
        replica = self._replicas.get()
        try:
            with torch.inference_mode(), _current(replica.device):
                if isinstance(inputs, Mapping):
                    batch: dict[str, Any] = _send(inputs, replica.device)
                else:
                    batch = collate(
                        [_send(page, replica.device) for page in inputs], self._processor.tokenizer.pad_token_id
                    )
                mask = batch["attention_mask"].bool()
                output = replica.model(**batch).float()
                output = output / output.norm(dim=-1, keepdim=True)  # bfloat16 rows are of length 0.997 to 1.003
                rows, kept = output.cpu().numpy(), mask.cpu().numpy()
        finally:
            self._replicas.put(replica)
        multi_vectors = [
            np.ascontiguousarray(page_rows[page_kept]) for page_rows, page_kept in zip(rows, kept, strict=True)
        ]
        if not all(np.isfinite(vectors).all() for vectors in multi_vectors):
            raise ModelError(
                f"{self.model_name} in {dtype_name(self.dtype)} computed vectors that are not finite: take "
                "dtype='float32', or 'bfloat16' on a GPU that computes in it."
            )
        return multi_vectors


def _special_tokens(processor: Any) -> list[str]:  # noqa: ANN401 - an optional package's type
    tokens = {str(token) for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    return sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)


def _current(device: str) -> AbstractContextManager[None]:
    """Make a GPU the one that kernels run on which are not told another."""
    import torch

    on_gpu: AbstractContextManager[None] = torch.cuda.device(device) if device.startswith("cuda") else nullcontext()
    return on_gpu


def _send(inputs: Mapping[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}


@contextmanager
def _stopped_at_exit(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """Drop what has not begun when the block is left, as by an interruption."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
