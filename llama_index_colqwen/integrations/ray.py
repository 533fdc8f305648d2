"""Pages and queries -> multi-vectors, by a pool of actors on a Ray cluster.

The driver, which is the process that indexes, sends batches of pages and takes their vectors; reading, looking up and
storing stay with it, as for any other embedder. Knows nothing of files, models or Milvus.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

from llama_index_colqwen.addresses import split_address
from llama_index_colqwen.concurrency import gather
from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder, sees_images
from llama_index_colqwen.embedders.resolve import resolve_embedder
from llama_index_colqwen.errors import (
    ClusterError,
    ColQwenError,
    DocumentError,
    InvalidOptionError,
    MissingDependencyError,
    ModelError,
    check_count,
    in_one_line,
)
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.pages import Page

__all__ = ["ActorProgress", "RayEmbedder"]

_Ray: TypeAlias = Any
"""Ray's module, its handles and references: imported late, and hardly typed."""

_Key = TypeVar("_Key")

_BATCH_PAGES = 16
_IN_FLIGHT = 2  # batches of an actor: one is sent, and its images are decoded, while another is in the model
_TRIES = 2  # of a page by itself, until it is given up
_STARTS = 3  # of actors that die one after the other before any is ready
_POLL_SECONDS = 0.5

# What an embedder may have beside the members of the protocol, and what it may be asked.
_VALUES = ("candidate_vectors", "sees_images")
_QUESTIONS = ("query_tokens", "page_words", "page_context", "highest_score")


@dataclass(frozen=True)
class ActorProgress:
    """What an actor has done.

    Attributes:
        node: The address of the machine that it runs on, or "" while it waits for one.
        pages: How many pages it embedded, those of the actors whose place it took included.
        replaced: How many actors died in its place.
    """

    node: str
    pages: int
    replaced: int


@dataclass(frozen=True)
class _Description:
    """What the driver has to know of the actors' embedder."""

    dim: int
    fingerprint: EmbedderFingerprint
    values: dict[str, Any]
    questions: tuple[str, ...]


class _Worker:
    """An actor: one embedder, loaded when it is first asked for, used by a few threads."""

    def __init__(self, make: Callable[[], MultiVectorEmbedder]) -> None:
        self._make = make

    def place(self) -> str:
        """Return the address of the machine, as soon as there is one."""
        import ray

        return str(ray.util.get_node_ip_address())

    def start(self) -> _Description:
        self._embedder = embedder = resolve_embedder(self._make())
        return _Description(
            embedder.dim,
            embedder.fingerprint,
            {name: getattr(embedder, name) for name in _VALUES if hasattr(embedder, name)},
            tuple(name for name in _QUESTIONS if hasattr(embedder, name)),
        )

    def embed(self, pages: Sequence[Page]) -> list[MultiVector]:
        vectors = self._embedder.embed_pages(pages)
        if len(vectors) != len(pages):
            raise ModelError(f"{self._embedder.fingerprint} gave {len(vectors)} multi-vectors for {len(pages)} pages.")
        return vectors

    def ask(self, question: str, arguments: tuple[Any, ...]) -> object:
        answer: object = getattr(self._embedder, question)(*arguments)
        return answer


@dataclass(eq=False)
class _Actor:
    """An actor as the driver sees it."""

    handle: _Ray
    placed: _Ray  # references to what `place` and `start` return
    started: _Ray
    node: str = ""
    is_ready: bool = False


@dataclass
class _Place:
    """One of the places in the pool: the actor that has it now, and what was done there."""

    actor: _Actor
    pages: int = 0
    replaced: int = 0


@dataclass(frozen=True)
class _Batch:
    """Pages that an actor has, with the caller's keys; one page that failed before is by itself."""

    pages: list[tuple[Any, Page]]
    place: _Place
    actor: _Actor
    tries: int = 0
    is_alone: bool = False


@dataclass
class _Stream:
    """What one call of `stream_pages` has in flight, and what it has to do again."""

    on_error: Literal["raise", "skip"]
    batches: dict[_Ray, _Batch] = field(default_factory=dict)
    again: deque[tuple[Any, Page, int]] = field(default_factory=deque)  # with the number of tries
    failed: list[tuple[Page, Exception]] = field(default_factory=list)
    error: Exception | None = None  # of the pages' iteration
    loads: Counter[int] = field(default_factory=Counter)  # by the id of the actor

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be handed out, but what actors have is still waited for."""
        return self.error is not None or (self.on_error == "raise" and bool(self.failed))


class RayEmbedder:
    """Embed pages on the machines and GPUs of a Ray cluster, each actor with an embedder of its own.

    An embedder like any other: give it to `ColQwenIndex.from_documents`, which goes on to read, look up and store in
    this process, in bounded memory. The fingerprint is that of the actors' embedder, so what Ray has indexed is opened
    by the embedder alone, without Ray. Queries are embedded by an actor, too.

    Page images are sent to the actors: they need the package with the embedder's extra, the same versions of Ray and
    Python, and the model, but not the files. An actor that dies is replaced, and its pages are done again, one by one.
    A page with which actors die twice, or that cannot be embedded twice, is given up as `on_error` says.

    Safe for many threads, and so has the embedder to be: an actor uses it from up to three. Close it, or use it in a
    `with` block, to free the actors' CPUs and GPUs; they are freed, too, when this process ends, however it does.

    Args:
        embedder: What `resolve_embedder` takes as a name, such as "vidore/colqwen2-v1.0", or a function without
            arguments that makes an embedder; it is sent to the actors, and called there.
        num_actors: How many; by default as many as the cluster has room for. Those for which there is no room yet join
            when there is.
        num_gpus: GPUs of an actor, such as 1, or .5 for two actors a GPU; by default 1 if the cluster has any, else 0.
        num_cpus: CPUs of an actor.
        address: A cluster's address, such as "10.0.0.1:6379"; "auto" for the one that this machine is in; "local" to
            start one here. By default the one that `ray.init()` takes. It does not matter where `ray.init` was called.
        on_error: "raise", or "skip" to leave out pages that cannot be embedded and say so in one
            `SkippedDocumentWarning`.
        start_timeout: How many seconds to wait for a machine with room for an actor, as in a cluster that grows. How
            long an actor takes to load its embedder does not count.

    Raises:
        MissingDependencyError: If the extra `[ray]` is not installed.
        ClusterError: If there is no such cluster, it has another version of Ray or Python, no room for an actor, or an
            actor cannot make the embedder, or makes another one than the others.
        InvalidOptionError: If an option has no such value.
    """

    def __init__(
        self,
        embedder: str | Callable[[], MultiVectorEmbedder],
        num_actors: int | None = None,
        num_gpus: float | None = None,
        num_cpus: float = 1,
        *,
        address: str | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        start_timeout: float = 300,
    ) -> None:
        """Start the actors, and wait until the first is ready; see the class for the arguments."""
        if num_actors is not None:
            check_count("num_actors", num_actors)
        if min(num_cpus, num_gpus or 0) < 0 or (num_cpus == 0 and num_gpus == 0):
            raise InvalidOptionError(f"An actor needs CPUs or GPUs; got num_cpus={num_cpus}, num_gpus={num_gpus}.")
        if on_error not in ("raise", "skip"):
            raise InvalidOptionError(f"on_error is 'raise' or 'skip'; got {on_error!r}.")
        self.on_error = on_error
        self._start_timeout = start_timeout
        self._ray = _connect(address)
        self._make = embedder if callable(embedder) else partial(resolve_embedder, embedder)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if num_gpus is None:
            num_gpus = int(any(node.get("GPU", 0) >= 1 for node in nodes))
        self._needs = {"CPU": num_cpus, "GPU": num_gpus}
        rooms = sum(
            min(int(node.get(name, 0) // number) for name, number in self._needs.items() if number) for node in nodes
        )
        if not rooms:
            warnings.warn(f"{self._no_room(nodes)} Waiting {start_timeout:g} s for one to join.", UserWarning, 2)
        self._lock = threading.RLock()
        self._died = 0  # since one was ready
        self._description: _Description | None = None
        self._worker = self._ray.remote(_Worker)
        self._places = [_Place(self._new_actor()) for _ in range(num_actors or max(rooms, 1))]
        try:
            self._wait_for_one()
        except BaseException:
            self.close()
            raise

    # ---- what an embedder is

    @property
    def dim(self) -> int:
        """Length of each vector."""
        return self._described.dim

    @property
    def fingerprint(self) -> EmbedderFingerprint:
        """What decides the vectors' meaning: that of the actors' embedder."""
        return self._described.fingerprint

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        """Embed pages, as the actors' embedder does; an error of one is raised, whatever `on_error` is."""
        vectors = dict(self._stream(enumerate(pages), "raise"))
        return [vectors[position] for position in range(len(pages))]

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        """Embed queries, by an actor."""
        vectors: list[MultiVector] = self._ask("embed_queries", list(queries))
        return vectors

    def stream_pages(self, pages: Iterable[Page]) -> Iterator[tuple[Page, MultiVector]]:
        """Embed pages as they come, in the order in which actors finish them; memory is bounded by 32 pages an actor.

        Raises:
            DocumentError: If a page's image is gone, or cannot be decoded; as all other errors, after the pages that
                were in work, and only if `on_error` is "raise".
            ModelError: If actors die with a page, or the embedder cannot embed it.
            ClusterError: If no actor can be started any longer.
        """
        return self._stream(((page, page) for page in pages), self.on_error)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the embedder has
        """Return what an embedder may have beside, if the actors' has it; a question is asked of an actor."""
        description: _Description | None = self.__dict__.get("_description")
        if description is not None and name in description.values:
            return description.values[name]
        if description is not None and name in description.questions:
            return partial(self._ask, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # ---- the actors

    @property
    def actors(self) -> list[ActorProgress]:
        """What each actor has done so far."""
        return [ActorProgress(place.actor.node, place.pages, place.replaced) for place in self._places]

    def close(self) -> None:
        """End the actors."""
        with self._lock:
            for place in self._places:
                self._end(place.actor)
            self._places = []

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse to be pickled: the actors are this process's."""
        raise InvalidOptionError("A RayEmbedder stays in the process that made it: pickle what its actors make.")

    def __enter__(self) -> RayEmbedder:
        """Return the embedder."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the actors."""
        self.close()

    @property
    def _described(self) -> _Description:
        if self._description is None:
            raise ClusterError("No actor is ready.")
        return self._description

    def _new_actor(self) -> _Actor:
        # Ray does not restart it: a new one is started in its place, however it ended.
        options = {"num_cpus": self._needs["CPU"], "num_gpus": self._needs["GPU"], "max_restarts": 0}
        try:
            handle = self._worker.options(**options, max_concurrency=_IN_FLIGHT + 1).remote(self._make)
        except (TypeError, ValueError) as error:
            raise InvalidOptionError(f"The embedder cannot be sent to actors: {in_one_line(error)}") from error
        return _Actor(handle, handle.place.remote(), handle.start.remote())

    def _end(self, actor: _Actor) -> None:
        try:
            self._ray.kill(actor.handle)
        except Exception as error:  # it is dead already, or so is the cluster
            logging.getLogger(__name__).debug("an actor did not end: %s", error)

    def _replace(self, place: _Place, actor: _Actor) -> None:
        """Start a new actor in the place of one that died, unless that is done."""
        with self._lock:
            if place.actor is not actor:
                return
            self._end(actor)
            place.actor = self._new_actor()
            place.replaced += 1

    def _admit(self, place: _Place, actor: _Actor) -> None:
        """Note that an actor is ready, or what became of it."""
        try:
            actor.node = self._ray.get(actor.placed)
            description = self._ray.get(actor.started)
        except self._ray.exceptions.RayTaskError as error:
            cause = _cause(error)
            raise ClusterError(
                f"The actor on {actor.node or 'a machine of the cluster'} cannot make its embedder: {_with_name(cause)}"
            ) from cause
        except self._ray.exceptions.RayError as error:
            self._died += 1
            if self._died >= _STARTS:
                raise ClusterError(
                    f"{self._died} actors died one after the other while they loaded the embedder, the last one on "
                    f"{actor.node or 'an unknown machine'}: {in_one_line(error)}"
                ) from error
            self._replace(place, actor)
            return
        with self._lock:
            if self._description is None:
                self._description = description
            elif description.fingerprint != self._description.fingerprint:
                raise ClusterError(
                    f"The actor on {actor.node} has the embedder {description.fingerprint}, and the first one had "
                    f"{self._description.fingerprint}: all machines need the same versions and the same model."
                )
            self._died = 0
            actor.is_ready = True

    def _wait_for_one(self) -> None:
        """Wait until an actor is ready."""
        deadline = time.monotonic() + self._start_timeout
        while True:
            places = list(self._places)
            if not places:
                raise ClusterError("The RayEmbedder is closed.")
            if any(place.actor.is_ready for place in places):
                return
            starting = {actor.started: (place, actor) for place in places if not (actor := place.actor).is_ready}
            done, _ = self._ray.wait(list(starting), timeout=_POLL_SECONDS)
            for reference in done:
                self._admit(*starting[reference])
            placed, _ = self._ray.wait([place.actor.placed for place in places], timeout=0)
            if not placed and time.monotonic() > deadline:
                nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
                raise ClusterError(f"{self._no_room(nodes)} None had room for an actor in {self._start_timeout:g} s.")

    def _no_room(self, nodes: Sequence[dict[str, float]]) -> str:
        def told(resources: dict[str, float]) -> str:
            return " and ".join(f"{resources.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))

        return (
            f"An actor needs a machine with {told(self._needs)}; the cluster's have "
            f"{'; '.join(sorted({told(node) for node in nodes})) or 'none'}."
        )

    def _ask(self, question: str, *arguments: Any) -> Any:  # noqa: ANN401 - whatever the embedder answers
        for _ in range(_STARTS):
            self._wait_for_one()
            with self._lock:
                place = next((place for place in self._places if place.actor.is_ready), None)
            if place is None:
                continue
            actor = place.actor
            try:
                return self._ray.get(actor.handle.ask.remote(question, arguments))
            except self._ray.exceptions.RayTaskError as error:
                raise _cause(error) from None
            except self._ray.exceptions.RayError:
                self._replace(place, actor)
        raise ClusterError(f"{_STARTS} actors died over a question to the embedder ({question}).")

    # ---- the stream

    def _stream(
        self, pages: Iterable[tuple[_Key, Page]], on_error: Literal["raise", "skip"]
    ) -> Iterator[tuple[_Key, MultiVector]]:
        stream, batches = _Stream(on_error), gather(pages, _BATCH_PAGES)
        while True:
            self._hand_out(stream, batches)
            if not stream.batches:
                break
            for batch, vectors in self._next_done(stream):
                batch.place.pages += len(vectors)
                yield from zip((key for key, _ in batch.pages), vectors, strict=True)
        if stream.failed and on_error == "raise":
            raise stream.failed[0][1]
        _tell_of(stream.failed)
        if stream.error is not None:
            raise stream.error

    def _hand_out(self, stream: _Stream, batches: Iterator[list[tuple[Any, Page]]]) -> None:
        """Give actors what they have room for; what failed before goes to one that has nothing else, by itself."""
        while not stream.is_over:
            self._wait_for_one()
            ready = [place for place in self._places if place.actor.is_ready]
            place = min(ready, key=lambda place: stream.loads[id(place.actor)])
            load = stream.loads[id(place.actor)]
            if stream.again and load == 0:
                key, page, tries = stream.again.popleft()
                self._send(stream, _Batch([(key, page)], place, place.actor, tries, is_alone=True))
                continue
            if stream.again or load >= _IN_FLIGHT:
                return
            try:
                pages = next(batches, None)
            except Exception as error:  # raised when what is in work is done
                stream.error = error
                return
            if pages is None:
                return
            self._send(stream, _Batch(pages, place, place.actor))

    def _send(self, stream: _Stream, batch: _Batch) -> None:
        sent = []
        for key, page in batch.pages:
            try:
                sent.append((key, self._with_image(page)))
            except DocumentError as error:
                stream.failed.append((page, error))
        if sent:
            batch = replace(batch, pages=[(key, page) for key, page in sent])
            reference = batch.actor.handle.embed.remote([page for _, page in sent])
            stream.batches[reference] = batch
            stream.loads[id(batch.actor)] += _IN_FLIGHT if batch.is_alone else 1

    def _with_image(self, page: Page) -> Page:
        """Return a page whose image is in it: the actor's machine may not have the file."""
        if page.image is not None or page.image_path is None or not sees_images(self):
            return page
        return replace(page, image=page.read_image())

    def _next_done(self, stream: _Stream) -> Iterator[tuple[_Batch, list[MultiVector]]]:
        """Wait for a batch, or for an actor that becomes ready; note what failed."""
        starting = {actor.started: (place, actor) for place in self._places if not (actor := place.actor).is_ready}
        done, _ = self._ray.wait([*stream.batches, *starting], num_returns=1)
        for reference in done:
            if reference in starting:
                self._admit(*starting[reference])
                continue
            batch = stream.batches.pop(reference)
            stream.loads[id(batch.actor)] -= _IN_FLIGHT if batch.is_alone else 1
            try:
                vectors = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                self._do_again(stream, batch, _cause(error))
            except self._ray.exceptions.RayError as error:
                self._replace(batch.place, batch.actor)
                _, page = batch.pages[0]
                why = f"The actors that embedded {page} died, the last one on {batch.actor.node}: {in_one_line(error)}"
                self._do_again(stream, batch, ModelError(why))
            else:
                yield batch, vectors

    def _do_again(self, stream: _Stream, batch: _Batch, error: Exception) -> None:
        """Try the pages one by one, or give the one up that was tried often enough."""
        tries = batch.tries + batch.is_alone
        for key, page in batch.pages:
            if tries >= _TRIES:
                stream.failed.append((page, error))
            else:
                stream.again.append((key, page, tries))


def _connect(address: str | None) -> _Ray:
    """Import Ray and, unless it is done, connect to the cluster."""
    # Read when Ray is imported, and when it starts a cluster: without the first, it sends the working directory, with
    # whatever lies there, to all machines if this process was started by `uv run`.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingDependencyError("Embedding on a Ray cluster needs Ray", "ray") from error
    if ray.is_initialized():
        return ray
    where = f"the Ray cluster at {address}" if address and ":" in address else "a Ray cluster"
    if address and ":" in address and "://" not in address:
        _knock(address)
    # A program that is forked off a process which has used gRPC, as the store does, dies now and then before it begins
    # (some 1 in 200), and a node that lacks one of its programs does not start.
    for is_last in (address != "local", True):
        try:
            ray.init(
                address=address,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            break
        except ConnectionError as error:
            raise ClusterError(
                f"There is no Ray cluster that could be reached ({in_one_line(error)}). Start one with `ray start "
                "--head`, or give address='local'."
            ) from error
        except Exception as error:  # Ray raises bare ones, too, where a node of its own does not start
            ray.shutdown()
            if is_last or isinstance(error, OSError):
                raise ClusterError(f"Cannot connect to {where}: {in_one_line(error)}") from error
    return ray


def _knock(address: str) -> None:
    """See whether anyone listens there: Ray would try for a minute, and then end the process."""
    parts = split_address(f"ray://{address}", ("ray",))
    try:
        if parts is None or not parts.port:
            raise ValueError("no host or no port")
        socket.create_connection((parts.hostname, parts.port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"There is no Ray cluster at {address} ({in_one_line(error)}). The address is HOST:PORT, as `ray start "
            "--head` prints it; the port is 6379 if nothing else was chosen."
        ) from error


def _cause(error: Any) -> Exception:  # noqa: ANN401 - ray.exceptions.RayTaskError
    """Return what was raised in the actor."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ColQwenError):
        return cause
    return ModelError(f"The embedder failed in its actor: {_with_name(cause or error)}")


def _with_name(error: BaseException) -> str:
    return str(error) if isinstance(error, ColQwenError) else f"{type(error).__name__}: {in_one_line(error)}"


def _tell_of(failed: Sequence[tuple[Page, Exception]]) -> None:
    if not failed:
        return
    from llama_index_colqwen.reading.reader import SkippedDocumentWarning

    told = "; ".join(f"{page}: {error}" for page, error in failed)
    warnings.warn(f"{len(failed)} pages could not be embedded, and were left out: {told}", SkippedDocumentWarning, 4)
