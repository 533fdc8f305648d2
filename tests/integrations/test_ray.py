from __future__ import annotations

import json
import logging
import os
import pickle
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import Document

from llama_index_colqwen import (
    ClusterError,
    ColQwenEmbedder,
    ColQwenIndex,
    DocumentError,
    DocumentNotFoundError,
    InvalidOptionError,
    LexicalEmbedder,
    MilvusPageStore,
    MissingDependencyError,
    ModelError,
    Page,
    PDFPageReader,
    QueryError,
    RayEmbedder,
    SkippedDocumentWarning,
)
from llama_index_colqwen.testing import FakeEmbedder
from tests.cli.commands import run
from tests.conftest import at_most
from tests.documents import write_text_pdf
from tests.fakes import PNG, make_page
from tests.integrations.actors import NeedsPictures, Poisoned, Slow, fail

ROOT = Path(__file__).parents[2]

# Read when Ray is imported or starts: by the second, the working directory would be sent to workers under `uv run`.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # and so none is written into the home folder


# In a process of its own: Ray forks to start its own, and gRPC, which Milvus's client uses, cannot always be forked.
CLUSTER = """
import logging, sys, ray
ray.init(
    "local",
    num_cpus=2,
    include_dashboard=False,
    log_to_driver=False,
    logging_level=logging.ERROR,
    object_store_memory=200 << 20,
    _temp_dir=sys.argv[1],
)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a cluster of two CPUs that is this process's own, and that it is connected to."""
    ray = pytest.importorskip("ray", reason="the [ray] extra is not installed")
    folder = tempfile.mkdtemp(prefix="ray-")  # Unix sockets have short paths only
    command = [sys.executable, "-c", CLUSTER, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            with at_most(60, process):
                assert process.stdout is not None
                address = process.stdout.readline().strip()
            assert address, "no cluster was started"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            yield address
        finally:
            ray.shutdown()
            process.communicate(timeout=60)
            shutil.rmtree(folder, ignore_errors=True)


def some_pages(number: int) -> list[Page]:
    return [make_page(f"p{count:03d}", f"page {count}", number=count) for count in range(number)]


def texts(pages: Sequence[Page]) -> list[str]:
    return sorted(page.text for page in pages)


@pytest.mark.slow
def test_pages_are_stored_and_ranked_as_by_the_embedder_alone(cluster: str, tmp_path: Path) -> None:
    reader = PDFPageReader(image_dir=tmp_path / "images", ocr="never")
    documents = reader.load_data(ROOT / "examples" / "pdfs", show_progress=False)
    question = "Which sensor drifted least in the salt-spray test?"
    found = {}
    with RayEmbedder("lexical", num_cpus=0.5) as embedder:
        assert embedder.fingerprint == LexicalEmbedder().fingerprint
        assert len(embedder.actors) == 4
        assert not embedder.sees_images
        for name, one in (("ray", embedder), ("local", LexicalEmbedder())):
            uri = tmp_path / f"{name}.db"
            with ColQwenIndex.from_documents(documents, one, uri=uri, show_progress=False) as index:
                assert (index.report.added, index.report.skipped) == (len(documents), [])
                hits = index.as_retriever(similarity_top_k=5, score="normalized").retrieve(question)
                found[name] = [(hit.node_id, hit.score) for hit in hits]
        assert sum(actor.pages for actor in embedder.actors) == len(documents)
        with pytest.raises(InvalidOptionError, match="stays in the process that made it"):
            pickle.dumps(embedder)
        with pytest.raises(QueryError, match="no letters or digits"):
            embedder.embed_queries([" "])
    assert found["ray"] == found["local"]
    with ColQwenIndex.from_existing(tmp_path / "ray.db") as index:  # without Ray
        assert isinstance(index.embedder, LexicalEmbedder)
        index.insert_nodes(documents, show_progress=False)
        assert (index.report.added, index.report.unchanged) == (0, len(documents))
    with pytest.raises(ClusterError, match="closed"):
        embedder.embed_queries(["again"])


@pytest.mark.slow
def test_model_in_an_actor_gives_the_vectors_and_patch_grids_that_it_gives_here(
    cluster: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    write_text_pdf(tmp_path / "a.pdf", "Height of the quay", "Turbidity of the harbour basin")
    documents = PDFPageReader(image_dir=tmp_path / "images", ocr="never").load_data(tmp_path / "a.pdf")
    pages = [
        Page(one.node_id, "a", "a.pdf", number, one.text, one.image_path)  # type: ignore[attr-defined]
        for number, one in enumerate(documents, 1)
    ]
    make = partial(ColQwenEmbedder, str(checkpoint()), max_visual_tokens=64)
    local = make()
    with RayEmbedder(make, num_actors=1) as embedder:
        assert (embedder.fingerprint, embedder.dim) == (local.fingerprint, local.dim)
        for ours, theirs in zip(embedder.embed_pages(pages), local.embed_pages(pages), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
            assert ours.patch_grid == theirs.patch_grid  # type: ignore[attr-defined]
            assert ours.patch_grid is not None  # type: ignore[attr-defined]
        np.testing.assert_allclose(embedder.embed_queries(["quay"])[0], local.embed_queries(["quay"])[0], atol=1e-5)
        assert embedder.query_tokens("quay") == local.query_tokens("quay")


@pytest.mark.slow
def test_pictures_are_sent_and_one_that_is_gone_is_named(cluster: str, tmp_path: Path) -> None:
    pages = [Page(f"p{number}", "a", "a.pdf", number, "", str(tmp_path / f"{number}.png")) for number in range(3)]
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(PNG)
    with RayEmbedder(NeedsPictures, num_actors=1) as embedder:
        done: list[Page] = []

        def until_one_cannot_be_read() -> Iterator[Page]:
            yield from pages[:2]
            raise DocumentError("b.pdf: it is none.")

        with pytest.raises(DocumentError, match="it is none"):
            done.extend(page for page, _ in embedder.stream_pages(until_one_cannot_be_read()))
        assert len(done) == 2
        done.clear()
        with pytest.raises(DocumentNotFoundError, match=r"The image of page 2 of a\.pdf .* is gone"):
            done.extend(page for page, _ in embedder.stream_pages(pages))
        assert [page.page_number for page in done] == [0, 1]
        assert all(page.image is None for page in done)  # as they were given
        embedder.on_error = "skip"
        with pytest.warns(SkippedDocumentWarning, match=r"1 pages could not be embedded.*page 2 of a\.pdf"):
            assert len(list(embedder.stream_pages(pages))) == 2


@pytest.mark.slow
def test_an_actor_that_is_killed_in_the_middle_is_replaced_and_its_pages_are_done_again(cluster: str) -> None:
    import ray

    pages = some_pages(200)
    with RayEmbedder(Slow, num_actors=2) as embedder:
        done = []
        for page, vectors in embedder.stream_pages(iter(pages)):
            assert np.array_equal(vectors, FakeEmbedder().embed_pages([page])[0])
            done.append(page)
            if len(done) == 40:
                ray.kill(embedder._places[0].actor.handle)
        assert texts(done) == texts(pages)
        assert [actor.replaced for actor in embedder.actors] == [1, 0]
        assert sum(actor.pages for actor in embedder.actors) == len(pages)
        for place in embedder._places:
            ray.kill(place.actor.handle)
        assert np.array_equal(embedder.embed_queries(["red"])[0], FakeEmbedder().embed_queries(["red"])[0])


@pytest.mark.slow
def test_poisoned_pages_are_named_and_left_out_and_all_others_are_stored(cluster: str, tmp_path: Path) -> None:
    names = [*map(str, range(30)), "deadly", *map(str, range(30, 50)), "bad"]
    pages = [make_page(f"p{name}", f"page {name}", number=number) for number, name in enumerate(names, 1)]
    with RayEmbedder(Poisoned, num_actors=1, on_error="skip") as embedder:
        with pytest.warns(SkippedDocumentWarning, match="2 pages could not be embedded") as caught:
            done = [page for page, _ in embedder.stream_pages(pages)]
        assert texts(done) == texts([page for page in pages if page.text not in ("page deadly", "page bad")])
        told = str(caught[0].message)
        assert "The actors that embedded page 31 of document.pdf (pdeadly) died" in told
        assert "page 52 of document.pdf (pbad): The embedder failed in its actor: ZeroDivisionError: a bad page" in told

        write_text_pdf(tmp_path / "a.pdf", "one", "page bad", "two")
        documents = PDFPageReader(image_dir=tmp_path, ocr="never").load_data(tmp_path / "a.pdf")
        for document in documents:
            document.set_content(document.text.strip())
        with (
            pytest.warns(SkippedDocumentWarning, match="page 2 of a.pdf"),
            ColQwenIndex.from_documents(documents, embedder, uri=tmp_path / "x.db", show_progress=False) as index,
        ):
            assert (index.report.added, index.report.skipped, index.store.count()) == (2, ["a.pdf, page 2"], 2)
        embedder.on_error = "raise"
        with pytest.raises(ModelError, match="ZeroDivisionError: a bad page"):
            list(embedder.stream_pages(pages[40:]))


@pytest.mark.slow
def test_ctrl_c_stores_what_was_embedded_and_the_command_goes_on_from_there(cluster: str, tmp_path: Path) -> None:
    write_text_pdf(tmp_path / "a.pdf", *(f"page {number}" for number in range(90)))
    options = ("--uri", tmp_path / "x.db", "--image-dir", tmp_path / "images", "--ocr", "never")
    reader = PDFPageReader(image_dir=tmp_path / "images", ocr="never")

    def interrupted() -> Iterator[Document]:
        for number, document in enumerate(reader.lazy_load_data(tmp_path / "a.pdf", show_progress=False), 1):
            yield document
            if number == 60:
                os.kill(os.getpid(), signal.SIGINT)

    with RayEmbedder("lexical", 1) as embedder, MilvusPageStore(tmp_path / "x.db") as store:
        with pytest.raises(KeyboardInterrupt):
            ColQwenIndex.from_documents(interrupted(), embedder, store=store, show_progress=False)
        stored = store.count()
    assert 0 < stored < 90
    done = json.loads(run("index", tmp_path / "a.pdf", *options, "--ray", cluster, "--actors", 1, "--json").stdout)
    assert (done["pages"], done["added"], done["unchanged"]) == (90, 90 - stored, stored)
    assert [(actor["pages"], actor["replaced"]) for actor in done["actors"]] == [(90 - stored, 0)]
    refused = run("index", tmp_path / "a.pdf", *options, "--ray", cluster, "--embedder", "no-such")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "cannot make its embedder: There is no embedder 'no-such'" in refused.stderr


def test_options_of_actors_without_ray_are_refused(tmp_path: Path) -> None:
    refused = run("index", tmp_path, "--gpus", 1)
    assert refused.exit_code == 2
    assert "--actors and --gpus go with --ray." in refused.stderr


DRIVER = """
import os, signal, sys, time, ray
from llama_index_colqwen import ClusterError, ColQwenIndex, MilvusPageStore, PDFPageReader, RayEmbedder
from tests.integrations.actors import Slow
true, ray.__version__ = ray.__version__, "2.0.0"
try:
    RayEmbedder(Slow, address=sys.argv[1])
except ClusterError as error:
    print(error, flush=True)
ray.__version__ = true
store = MilvusPageStore(sys.argv[3])

def documents():
    reader = PDFPageReader(image_dir=sys.argv[4], ocr="never")
    for number, document in enumerate(reader.lazy_load_data(sys.argv[2], show_progress=False)):
        yield document
        if number == 100:
            while not store.count():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

embedder = RayEmbedder(Slow, 2, address=sys.argv[1])
ColQwenIndex.from_documents(documents(), embedder, store=store, show_progress=False)
"""


@pytest.mark.slow
def test_driver_of_another_version_is_told_and_one_that_is_killed_loses_nothing_that_it_stored(
    cluster: str, tmp_path: Path
) -> None:
    write_text_pdf(tmp_path / "a.pdf", *(f"page {number}" for number in range(150)))
    arguments = [cluster, str(tmp_path / "a.pdf"), str(tmp_path / "x.db"), str(tmp_path / "images")]
    with (
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as driver,
        at_most(100, driver),
    ):
        told, _ = driver.communicate()
    assert told.startswith("Cannot connect to the Ray cluster at ")
    assert "Ray: 2.0.0" in told
    assert driver.returncode == -signal.SIGKILL
    with RayEmbedder(Slow, 2) as embedder:  # there is room: the dead driver's actors are gone
        reader = PDFPageReader(image_dir=tmp_path / "images", ocr="never")
        with MilvusPageStore(tmp_path / "x.db") as store:
            stored = store.count()
            assert 0 < stored < 150
            documents = reader.lazy_load_data(tmp_path / "a.pdf", show_progress=False)
            index = ColQwenIndex.from_documents(documents, embedder, store=store, show_progress=False)
            assert (index.report.added, index.report.unchanged) == (150 - stored, stored)
            assert store.check().lost == []
            assert store.count() == 150


@pytest.mark.slow
def test_what_an_actor_cannot_be_or_have_is_one_sentence(cluster: str) -> None:
    with (
        pytest.warns(UserWarning, match=r"needs a machine with 1 CPUs and 1 GPUs; .* 2 CPUs and 0 GPUs\. Wait"),
        pytest.raises(ClusterError, match=r"have 2 CPUs and 0 GPUs\. None had room for an actor in 0\.5 s\."),
    ):
        RayEmbedder(FakeEmbedder, num_gpus=1, start_timeout=0.5)
    with pytest.raises(ClusterError, match=r"on [\d.]+ cannot make its embedder: There is no model 'x' on this mach"):
        RayEmbedder(fail, num_actors=1)
    with pytest.raises(ClusterError, match="cannot make its embedder: There is no embedder 'no-such'"):
        RayEmbedder("no-such", num_actors=1)
    lock = socket.socket()
    with lock, pytest.raises(InvalidOptionError, match="The embedder cannot be sent to actors"):
        RayEmbedder(lambda: FakeEmbedder(name=str(lock)), num_actors=1)


def test_without_ray_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"needs Ray\. Install it with: pip install 'llama-index-colqwen"):
        RayEmbedder("lexical")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_actors": 0}, "num_actors is a whole number, at least 1; got 0"),
        ({"num_cpus": 0, "num_gpus": 0}, "An actor needs CPUs or GPUs"),
        ({"num_cpus": -1}, "An actor needs CPUs or GPUs; got num_cpus=-1"),
        ({"on_error": "ignore"}, "on_error is 'raise' or 'skip'; got 'ignore'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidOptionError, match=sentence):
        RayEmbedder("lexical", **options)


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "127.0.0.1:no", "127.0.0.1:65536", ":6379"])
def test_address_where_no_cluster_is_is_one_sentence(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the [ray] extra is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = address.format(free.getsockname()[1])
        with pytest.raises(ClusterError, match=f"There is no Ray cluster at {address} .*HOST:PORT"):
            RayEmbedder("lexical", address=address)


OWN_CLUSTER = """
from llama_index_colqwen import ClusterError, RayEmbedder
try:
    RayEmbedder("lexical", address="local")
except ClusterError as error:
    print(error)
"""


@pytest.mark.slow
def test_cluster_of_its_own_that_does_not_start_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_python: Callable[..., str]
) -> None:
    pytest.importorskip("ray", reason="the [ray] extra is not installed")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 100)))  # no socket's path is that long
    (tmp_path / ("x" * 100)).mkdir()
    assert run_python(OWN_CLUSTER).startswith("Cannot connect to a Ray cluster: ")


FIRST_PROGRAM_DIES = """
from ray._private import services
from llama_index_colqwen import RayEmbedder
started = []
class Popen(services.ConsolePopen):
    def __init__(self, command, **options):
        started.append(command)
        super().__init__(command if len(started) > 1 else ["false"], **options)
services.ConsolePopen = Popen
RayEmbedder("lexical", address="local", num_actors=1).close()
print(len(started) > 2)
"""


@pytest.mark.slow
def test_cluster_of_its_own_is_started_again_if_one_of_its_programs_died(run_python: Callable[..., str]) -> None:
    pytest.importorskip("ray", reason="the [ray] extra is not installed")
    assert run_python(FIRST_PROGRAM_DIES).strip() == "True"
