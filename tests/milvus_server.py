"""A real Milvus server on 127.0.0.1, for tests and benchmarks, without docker.

    python3 -m uv run --no-project --with 'milvus==2.3.5' --with 'setuptools<80' \
        python tests/milvus_server.py --port 19530 [--data DIR] [--short-timers]

The package carries the server's Linux program, which listens on all addresses and asks nobody for a password. So it
runs in a network namespace of its own (which takes root, or user namespaces), and what comes to 127.0.0.1 is passed on
to it through a Unix socket. Prints "ready" when it can be used; SIGTERM or Ctrl-C ends it.

A collection takes 3 s to be loaded, most of them spent in waiting for Milvus's timers. With --short-timers it takes
2 s, and time ticks, for which searches wait, come twice as often: for tests, and not for benchmarks.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import multiprocessing
import os
import shutil
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
MILVUS_PORT = 19530
START_SECONDS = 180
# In ms, and by default 200 to 1000. Milvus reads them in place of proxy.timeTickInterval and so on in its file.
SHORT_TIMERS = {
    "PROXY_TIMETICKINTERVAL": "100",
    "QUERYCOORD_CHECKCHANNELINTERVAL": "100",
    "QUERYCOORD_CHECKSEGMENTINTERVAL": "100",
    "QUERYCOORD_DISTPULLINTERVAL": "100",
}


def enter_namespace() -> None:
    """Give this process a network of its own, with nothing in it but 127.0.0.1."""
    user, group = os.getuid(), os.getgid()
    flags = CLONE_NEWNET if user == 0 else CLONE_NEWUSER | CLONE_NEWNET
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        raise SystemExit(f"No network namespace can be made here ({os.strerror(ctypes.get_errno())}).")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))


def relay(listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
    """Pass on whatever comes to a listener, each connection in threads of its own."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 18):
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    while True:
        near, _ = listener.accept()
        try:
            far = connect()
        except OSError:
            near.close()
            continue
        for pair in ((near, far), (far, near)):
            threading.Thread(target=copy, args=pair, daemon=True).start()


def connect_to(family: socket.AddressFamily, address: str | tuple[str, int]) -> socket.socket:
    """Connect a new socket."""
    made = socket.socket(family)
    made.connect(address)
    return made


def serve(data: Path, path: Path) -> None:
    """Run Milvus where only this process and its children see it, and a Unix socket that leads to it."""
    enter_namespace()
    from milvus import MilvusServer

    server = MilvusServer()
    server.set_base_dir(str(data))
    server.config.set("proxy_port", MILVUS_PORT)

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would wait for what this one holds
        server.stop()
        os._exit(0)  # the relay's threads wait for connections

    signal.signal(signal.SIGTERM, stop)
    server.start()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        relay(listener, lambda: connect_to(socket.AF_INET, ("127.0.0.1", MILVUS_PORT)))


def main() -> None:
    """Run the server until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=MILVUS_PORT)
    parser.add_argument("--data", type=Path, help="a folder; by default a new one, removed at the end")
    parser.add_argument("--short-timers", action="store_true", help="for tests: wait less")
    arguments = parser.parse_args()
    if arguments.short_timers:
        os.environ.update(SHORT_TIMERS)

    folder = Path(tempfile.mkdtemp(prefix="milvus-"))
    path = folder / "milvus.sock"
    server = multiprocessing.Process(target=serve, args=(arguments.data or folder / "data", path))
    server.start()

    def stop(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # who ends a group of processes, as `uv run` and .ci/run, sends two
        raise SystemExit

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        for _ in range(10 * START_SECONDS):
            if path.exists() or not server.is_alive():
                break
            time.sleep(0.1)
        if not path.exists():
            raise SystemExit("Milvus did not start.")
        with socket.create_server(("127.0.0.1", arguments.port)) as listener:
            threading.Thread(
                target=relay, args=(listener, lambda: connect_to(socket.AF_UNIX, str(path))), daemon=True
            ).start()
            print("ready", flush=True)  # noqa: T201 - for whoever waits for it
            server.join()
            raise SystemExit("Milvus has ended.")
    finally:
        server.terminate()
        server.join()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
