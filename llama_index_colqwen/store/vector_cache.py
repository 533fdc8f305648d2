"""Encoded multi-vectors <-> files on this machine, memory-mapped.

Disposable: whatever is missing, truncated or corrupt is simply not there, and is read from Milvus again. Knows nothing
of Milvus, or of which pages there are.

A folder of numbered segments. `000001.vectors` holds encoded multi-vectors end to end; `000001.index` a record of fixed
size for each: what it is, where it lies, and checksums of both. Both are only ever appended to, each time by a single
write, so that many processes can share a folder without locks. The oldest segment goes when there is no more room.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from llama_index_colqwen.concurrency import Lock, gather
from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, PatchGrid, VectorDtype, bytes_a_vector

__all__ = ["CachedVectors", "VectorCache"]

_LOGGER = logging.getLogger(__name__)

_SEGMENT_BYTES = 256 << 20
_READ_PAGES = 1024

_Wanted = TypeVar("_Wanted")

# The last field is the checksum of the others; a grid of no rows is none.
_RECORD = np.dtype(
    [("name", "V16"), ("offset", "<u8"), ("vectors", "<u4"), ("data", "<u4"), ("grid", "<u4", 3), ("record", "<u4")]
)


class CachedVectors(NamedTuple):
    """A page's vectors, maybe as views of mapped memory, and its patch grid."""

    encoded: EncodedVectors
    patch_grid: PatchGrid | None


@dataclass(frozen=True)
class _Place:
    """Where a multi-vector lies."""

    segment: int
    offset: int
    vectors: int
    checksum: int
    grid: tuple[int, int, int]


class VectorCache:
    """Keep encoded multi-vectors by name, safe for many threads and processes.

    Args:
        folder: Created when something is first put there.
        dim: Length of a vector.
        dtype: How vectors are encoded.
        max_bytes: When files take more than this, the oldest go; None for no bound.
    """

    def __init__(self, folder: Path, dim: int, dtype: VectorDtype, max_bytes: int | None = None) -> None:
        """See the class; nothing is opened yet."""
        self.folder = folder
        self._dim, self._dtype = dim, dtype
        self._row_bytes = bytes_a_vector(dim, dtype)
        self._max_bytes = max_bytes
        self._segment_bytes = min(_SEGMENT_BYTES, max_bytes // 4) if max_bytes else _SEGMENT_BYTES
        self._lock = Lock()
        self._places: dict[bytes, _Place] = {}
        self._read: dict[int, int] = {}  # segment -> bytes of its index that are known
        self._maps: dict[int, mmap.mmap] = {}
        self._checked: set[bytes] = set()
        self._writable = True

    def get(self, names: Iterable[str]) -> dict[str, CachedVectors]:
        """Return what is there of these, each checked against its checksum when it is first read."""
        wanted = {name: _digest(name) for name in names}
        found: dict[str, CachedVectors] = {}
        with self._lock:
            self._drop_lost_segments()
            if any(digest not in self._places for digest in wanted.values()):
                self._read_indexes()
            for name, digest in wanted.items():
                place = self._places.get(digest)
                if place is None:
                    continue
                data = self._bytes_at(place)
                if data is None or (digest not in self._checked and zlib.crc32(data) != place.checksum):
                    _LOGGER.warning("A cached page in %s is corrupt; it is read from Milvus again.", self.folder)
                    del self._places[digest]
                    continue
                self._checked.add(digest)
                grid = PatchGrid(*place.grid) if place.grid[0] else None
                found[name] = CachedVectors(EncodedVectors.from_bytes(data, self._dim, self._dtype), grid)
        return found

    def read(
        self,
        wanted: Mapping[str, _Wanted],
        fetch: Callable[[Mapping[str, _Wanted]], Iterable[tuple[str, CachedVectors]]],
    ) -> Iterator[tuple[str, CachedVectors]]:
        """Return what is there of these and fetch, and keep, the others; by name, in order but for those fetched.

        Args:
            wanted: By name, whatever it takes to fetch it.
            fetch: Reads some of these from where they are kept; what it does not return either is left out.
        """
        for names in gather(wanted, _READ_PAGES):
            found = self.get(names)
            yield from found.items()
            missing = {name: wanted[name] for name in names if name not in found}
            for name, vectors in fetch(missing) if missing else ():
                self.put(name, *vectors)
                yield name, vectors

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return which of these are not there, without reading any."""
        with self._lock:
            self._drop_lost_segments()
            self._read_indexes()
            return [name for name in names if _digest(name) not in self._places]

    def put(self, name: str, encoded: EncodedVectors, patch_grid: PatchGrid | None = None) -> None:
        """Keep a multi-vector, in place of any of that name; of a disk that refuses, one warning tells."""
        grid = (0, 0, 0) if patch_grid is None else (patch_grid.rows, patch_grid.columns, patch_grid.start)
        self._append(_digest(name), encoded.to_bytes(), grid)

    def compact(self, names: Collection[str]) -> None:
        """Rewrite the files if half of what they hold is not one of these. For a folder that nobody else has open."""
        with self._lock:
            self._drop_lost_segments()
            self._read_indexes()
            kept = [digest for name in names if (digest := _digest(name)) in self._places]
            live = sum(self._places[digest].vectors for digest in kept) * self._row_bytes
            if sum(path.stat().st_size for path in self._files("vectors")) <= 2 * live:
                return
            places, old = {digest: self._places[digest] for digest in kept}, self._segments()
            self._places, self._checked = {}, set()
            self._read[max(old) + 1] = 0
            for digest, place in sorted(places.items(), key=lambda item: (item[1].segment, item[1].offset)):
                data = self._bytes_at(place)
                if data is not None and zlib.crc32(data) == place.checksum:
                    self._append(digest, data.tobytes(), place.grid)
            for segment in old:
                self._remove(segment)

    def clear(self) -> None:
        """Delete the folder."""
        with self._lock:
            self._forget_all()
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- inside: files

    def _append(self, digest: bytes, data: bytes, grid: tuple[int, int, int]) -> None:
        with self._lock:
            if not self._writable:
                return
            try:
                segment = max([*self._read, *self._segments()], default=1)
                # A record that was cut off would shift all that are appended after it.
                torn = _file_size(self._path(segment, "index")) % _RECORD.itemsize > 0
                if self._size(segment) >= self._segment_bytes or torn:
                    segment += 1
                self.folder.mkdir(parents=True, exist_ok=True)
                offset = _append(self._path(segment, "vectors"), data)
                record = np.zeros(1, _RECORD)
                checksum = zlib.crc32(data)
                record[0] = (digest, offset, len(data) // self._row_bytes, checksum, grid, 0)
                record["record"] = zlib.crc32(record.tobytes()[:-4])
                _append(self._path(segment, "index"), record.tobytes())
            except OSError as error:
                self._writable = False
                _LOGGER.warning("Pages cannot be cached in %s (%s): searches will be slower.", self.folder, error)
                return
            self._read.setdefault(segment, 0)
            self._places[digest] = _Place(segment, offset, len(data) // self._row_bytes, checksum, grid)
            self._checked.discard(digest)
            self._make_room(segment)

    def _make_room(self, current: int) -> None:
        if self._max_bytes is None:
            return
        sizes = {segment: self._size(segment) for segment in self._segments()}
        for segment in sorted(sizes):
            if sum(sizes.values()) <= self._max_bytes or segment == current:
                return
            del sizes[segment]
            self._remove(segment)

    def _read_indexes(self) -> None:
        """Take in what this or another process has appended."""
        for segment in self._segments():
            known = self._read.get(segment, 0)
            path = self._path(segment, "index")
            try:
                if path.stat().st_size <= known:
                    continue
                with path.open("rb") as file:
                    file.seek(known)
                    data = file.read()
            except FileNotFoundError:  # another process made room
                continue
            whole = len(data) - len(data) % _RECORD.itemsize
            self._read[segment] = known + whole
            size = self._size(segment)
            for start, record in enumerate(np.frombuffer(data[:whole], _RECORD).tolist()):
                name, offset, vectors, checksum, grid, record_checksum = record
                raw = data[start * _RECORD.itemsize : (start + 1) * _RECORD.itemsize - 4]
                if zlib.crc32(raw) == record_checksum and offset + vectors * self._row_bytes <= size:
                    self._places[name] = _Place(segment, offset, vectors, checksum, tuple(grid))
                    self._checked.discard(name)

    def _drop_lost_segments(self) -> None:
        """Forget segments whose files were deleted or truncated: reading a truncated map would end the process."""
        for segment in list(self._read):
            mapped = self._maps.get(segment)
            if self._size(segment) < (len(mapped) if mapped is not None else 1) or (
                _file_size(self._path(segment, "index")) < self._read[segment]
            ):
                self._forget(segment)

    def _bytes_at(self, place: _Place) -> memoryview | None:
        end = place.offset + place.vectors * self._row_bytes
        mapped = self._maps.get(place.segment)
        if mapped is None or len(mapped) < end:
            try:
                with self._path(place.segment, "vectors").open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):
                return None
            if len(mapped) < end:
                return None
            self._maps[place.segment] = mapped
        return memoryview(mapped)[place.offset : end]

    def _remove(self, segment: int) -> None:
        for kind in ("index", "vectors"):
            self._path(segment, kind).unlink(missing_ok=True)
        self._forget(segment)

    def _forget(self, segment: int) -> None:
        self._read.pop(segment, None)
        self._maps.pop(segment, None)
        self._places = {name: place for name, place in self._places.items() if place.segment != segment}
        self._checked &= self._places.keys()

    def _forget_all(self) -> None:
        self._read, self._maps, self._places, self._checked = {}, {}, {}, set()

    def _segments(self) -> list[int]:
        return sorted(int(path.stem) for path in self._files("index") if path.stem.isdigit())

    def _files(self, kind: str) -> list[Path]:
        return list(self.folder.glob(f"*.{kind}"))

    def _path(self, segment: int, kind: str) -> Path:
        return self.folder / f"{segment:06d}.{kind}"

    def _size(self, segment: int) -> int:
        return _file_size(self._path(segment, "vectors"))


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _file_size(path: Path) -> int:
    """Return 0 for a file that is not there, as for an empty one."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _append(path: Path, data: bytes) -> int:
    """Append by one write, and return where the data begins; other processes may append at the same time."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if os.write(file, data) != len(data):
            raise OSError("no space left")
        return os.lseek(file, 0, os.SEEK_CUR) - len(data)
    finally:
        os.close(file)
