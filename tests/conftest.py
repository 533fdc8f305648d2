"""What every test module may ask for."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from loky import cpu_count

from tests.extras import LOAD_TORCH

# huggingface_hub reads it when it is imported: no test asks the hub, but the one that tests make themselves.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Several processes share the cores: a thread of torch that has nothing to do gives its core back, and does not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # More threads than cores cost a fifth more than they give.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // int(workers))))

# No test speaks TLS, and httpx would read all the world's certificates for each of its clients, which takes 50 ms.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

# An interpreter that may not keep bytecode compiles whatever it imports: 5 s instead of 2, fifty times in these tests.
# Where the environment forbids it, it is kept with pytest's cache, for the processes that tests start.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

# With this many objects imported, looking through all of them for garbage takes .3 s, and is seldom worth it.
gc.set_threshold(gc.get_threshold()[0], 10, 100)

# A shell's background job ignores Ctrl-C, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Take the options that pyproject.toml gives to pytest-xdist also where it is left out, as by `-p no:xdist`."""
    if not pluginmanager.hasplugin("xdist"):
        for option in ("--numprocesses", "--maxprocesses", "--dist"):
            parser.addoption(option, help="(pytest-xdist is left out)")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes run tests: more than cores, as many tests wait, but not more than memory takes."""
    cores: int = cpu_count()
    return min(cores + 1, 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what waits for the Milvus server first, so that one process of pytest-xdist waits while the others compute.

    Then what loads torch, which so is in the share of one process, or two, and not of all; and mark it slow.
    """

    def turn(item: pytest.Item) -> int:
        if "milvus_server" in item.nodeid or "milvus_server" in getattr(item, "fixturenames", ()):
            return 0
        return 1 if loads_torch(item) else 2

    def loads_torch(item: pytest.Item) -> bool:
        return any(mark in LOAD_TORCH for mark in item.iter_markers("skipif"))

    items.sort(key=turn)
    for item in filter(loads_torch, items):
        item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def _user_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Leave the cache of whoever runs the tests alone; all processes of pytest-xdist have one, as a user's have."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "user-cache"
    folder.mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder)


@pytest.fixture(scope="session")
def sample_pdfs() -> Path:
    """The folder of awkward real PDFs that lies beside the repository on some machines."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "sample_pdfs"
    if not folder.is_dir():
        pytest.skip("the sample PDFs (../shared/sample_pdfs) are not on this machine")
    return folder


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Run code in a fresh interpreter, with nothing imported and no memory used yet; returns what it prints."""

    def run(code: str, *arguments: object) -> str:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of a tiny real model, or of a LoRA adapter of it; made once, so copy it before changing it."""
    pytest.importorskip("colpali_engine", reason="the [colqwen] extra is not installed")
    from tests.checkpoints import build_adapter, build_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def build(architecture: str = "ColQwen2", *, adapter: bool = False, legacy_names: bool = False) -> Path:
        folder = root / f"{architecture}{'-legacy' * legacy_names}{'-lora' * adapter}"
        if adapter:
            return build_adapter(build(architecture), folder, legacy_names=legacy_names)
        return build_checkpoint(architecture, folder, legacy_names=legacy_names)

    return build


@pytest.fixture(scope="session")
def milvus_server() -> str:
    """The address of a real Milvus server."""
    if address := os.environ.get("COLQWEN_TEST_MILVUS"):
        return address
    pytest.skip("no Milvus server: give its address in COLQWEN_TEST_MILVUS, or run tests/milvus_server.py")


@pytest.fixture(scope="session")
def lite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Milvus Lite server on loopback, made for the tests."""
    with start_lite_server(tmp_path_factory.mktemp("server") / "server.db") as (_, uri):
        yield uri


@contextmanager
def start_lite_server(path: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Serve a Milvus Lite file on loopback, at any free port or the one given."""
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("milvus-lite")
    command = [str(program), "server", "--data-dir", str(path), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not _answers(port):
                assert process.poll() is None, "Milvus Lite's server has ended"
                assert time.monotonic() < deadline, "Milvus Lite's server did not start"
                time.sleep(0.1)
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(port: int) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def at_most(seconds: float, process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill a process that is still at work when the time is over or the test failed, so that nobody waits for it."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
