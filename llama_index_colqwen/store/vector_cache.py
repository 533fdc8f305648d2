"""Encoded multi-vectors <-> files on this machine, memory-mapped.

Disposable: whatever is missing, truncated or corrupt is simply not there, and is read from Milvus again. Nothing that
happens to the folder is an error to whoever reads or writes here; a warning tells, once. Knows nothing of Milvus, or of
which pages there are.

A folder of numbered segments. `000001.vectors` holds encoded multi-vectors end to end; `000001.index` a record of fixed
size for each: what it is, where it lies, and checksums of both. Both are only ever appended to, each time by a single
write, so that many processes can share a folder without locks. A bounded cache drops its oldest segment when there is
no more room. One without a bound is told what is no longer wanted, and copies what is wanted out of segments that hold
little of it.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import re
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from llama_index_colqwen.concurrency import Lock, gather
from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, PatchGrid, VectorDtype, bytes_a_vector

__all__ = ["CachedVectors", "VectorCache"]

_LOGGER = logging.getLogger(__name__)

# What is copied at a time is at most half a segment: 30 ms. Each segment that is read takes a file descriptor.
_SEGMENT_BYTES = 64 << 20
_SEGMENT_FILE = re.compile(r"([0-9]{6,12})\.(?:index|vectors)")
_READ_PAGES = 1024
_RETRY_SECONDS = 60.0  # how long a disk that refused is left alone

_Wanted = TypeVar("_Wanted")

# The last field is the checksum of the others; a grid of no rows is none.
_RECORD = np.dtype(
    [("name", "V16"), ("offset", "<u8"), ("vectors", "<u4"), ("data", "<u4"), ("grid", "<u4", 3), ("record", "<u4")]
)


class CachedVectors(NamedTuple):
    """A page's vectors, maybe as views of mapped memory, and its patch grid."""

    encoded: EncodedVectors
    patch_grid: PatchGrid | None


@dataclass(slots=True)
class _Place:
    """Where a multi-vector lies."""

    segment: int
    offset: int
    vectors: int
    checksum: int
    grid: tuple[int, int, int]
    is_wanted: bool = True
    is_checked: bool = False


class _State(NamedTuple):
    """What tells whether a file was changed."""

    inode: int
    size: int
    changed: int


@dataclass(slots=True)
class _Segment:
    """The files whose places are known, as they were then or as this process has changed them since."""

    vectors: _State
    index: _State
    mapped: mmap.mmap | None = None


class VectorCache:
    """Keep encoded multi-vectors by name, safe for many threads and processes.

    A name should change with what it names: where files are damaged, older vectors of the same name can come back.

    Args:
        folder: Created when something is first put there.
        dim: Length of a vector.
        dtype: How vectors are encoded.
        max_bytes: When files take more than this, the oldest go. None for no bound but twice what is wanted (and half a
            segment more, 32 MB, while files are rewritten); for a folder that no other process uses.
    """

    def __init__(self, folder: Path, dim: int, dtype: VectorDtype, max_bytes: int | None = None) -> None:
        """See the class; nothing is opened yet."""
        self.folder = folder
        self._dim, self._dtype = dim, dtype
        self._row_bytes = bytes_a_vector(dim, dtype)
        self._max_bytes = max_bytes
        self._segment_bytes = _SEGMENT_BYTES if max_bytes is None else min(_SEGMENT_BYTES, max_bytes // 4)
        self._lock = Lock()
        self._places: dict[bytes, _Place] = {}
        self._wanted_bytes = 0  # of all places
        self._segments: dict[int, _Segment] = {}
        self._current = 0  # where to append
        self._closed = 0  # up to which segments are not appended to any more
        self._refused_until = 0.0
        self._told: set[str] = set()

    def get(self, names: Iterable[str]) -> dict[str, CachedVectors]:
        """Return what is there of these, each checked against its checksum when it is first read."""
        wanted = {name: _digest(name) for name in names}
        found: dict[str, CachedVectors] = {}
        with self._lock:
            for number in {place.segment for digest in wanted.values() if (place := self._places.get(digest))}:
                self._look_at(number)
            if any(digest not in self._places for digest in wanted.values()):
                self._read_indexes()
            for name, digest in wanted.items():
                if (data := self._read(digest)) is not None:
                    grid = self._places[digest].grid
                    encoded = EncodedVectors.from_bytes(data, self._dim, self._dtype)
                    found[name] = CachedVectors(encoded, PatchGrid(*grid) if grid[0] else None)
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
            self._read_indexes()
            return [name for name in names if _digest(name) not in self._places]

    def put(self, name: str, encoded: EncodedVectors, patch_grid: PatchGrid | None = None) -> None:
        """Keep a multi-vector, in place of any of that name; of a disk that refuses, one warning tells."""
        grid = (0, 0, 0) if patch_grid is None else (patch_grid.rows, patch_grid.columns, patch_grid.start)
        digest, data = _digest(name), encoded.to_bytes()
        with self._lock:
            place = self._places.get(digest)
            if place is not None and (place.checksum, place.grid) == (zlib.crc32(data), grid):
                self._look_at(place.segment)
                if self._read(digest) == memoryview(data):
                    self._want(place, True)
                    return
            if self._append(digest, data, grid):
                self._rewrite_segments()

    def remove(self, names: Iterable[str]) -> None:
        """Say that these are no longer wanted. They may still be found, until their files are rewritten."""
        with self._lock:
            for name in names:
                if (place := self._places.get(_digest(name))) is not None:
                    self._want(place, False)
            self._rewrite_segments()

    def compact(self, names: Collection[str]) -> None:
        """Say that only these are still wanted. For a cache without a bound."""
        wanted = {_digest(name) for name in names}
        with self._lock:
            self._read_indexes()
            for digest, place in self._places.items():
                self._want(place, digest in wanted)
            for number in self._numbers():
                if number not in self._segments:  # a process ended between writing the one file and the other
                    self._delete(number)
            self._rewrite_segments()

    def clear(self) -> None:
        """Delete the folder."""
        with self._lock:
            self._places, self._wanted_bytes, self._segments = {}, 0, {}
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- inside: reading

    def _read(self, digest: bytes) -> memoryview | None:
        """Return what lies at a place, if it is right; the segment was looked at."""
        place = self._places.get(digest)
        if place is None:
            return None
        data = self._map(place)
        if data is None or not (place.is_checked or zlib.crc32(data) == place.checksum):
            self._tell("Cached pages in %s are corrupt; they are read from Milvus again.", self.folder)
            self._forget_place(digest)
            return None
        place.is_checked = True
        return data

    def _map(self, place: _Place) -> memoryview | None:
        segment = self._segments[place.segment]
        end = place.offset + self._length(place)
        if segment.mapped is None or len(segment.mapped) < end:
            try:
                with self._path(place.segment, "vectors").open("rb") as file:
                    if os.fstat(file.fileno()).st_ino != segment.vectors.inode:
                        return None
                    segment.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # ValueError: the file is empty
                return None
        return memoryview(segment.mapped)[place.offset : end] if end <= len(segment.mapped) else None

    def _read_indexes(self) -> None:
        """Take in what this or another process has written."""
        for number in sorted({*self._segments, *self._numbers()}):
            self._read_index(number)

    def _read_index(self, number: int) -> None:
        self._look_at(number)
        if number in self._segments:
            return
        path = self._path(number, "index")
        index = _state(path)
        if index is None:
            return
        try:
            with path.open("rb") as file:
                data = file.read(index.size - index.size % _RECORD.itemsize)
        except OSError as error:
            self._tell("Cached pages in %s cannot be read (%s); they are read from Milvus.", self.folder, error)
            return
        # Looked at after the index was read, whose records are written last.
        vectors = _state(self._path(number, "vectors"))
        if vectors is None or not data or len(data) % _RECORD.itemsize:
            return
        self._segments[number] = _Segment(vectors, index)
        records: list[Any] = np.frombuffer(data, _RECORD).tolist()
        for start, record in enumerate(records):
            name, offset, rows, checksum, grid, record_checksum = record
            raw = data[start * _RECORD.itemsize : (start + 1) * _RECORD.itemsize - 4]
            if zlib.crc32(raw) == record_checksum and rows and offset + rows * self._row_bytes <= vectors.size:
                before = self._places.get(name)
                if before is None or (before.segment, before.offset) < (number, offset):
                    self._keep_place(name, _Place(number, offset, rows, checksum, tuple(grid)))

    def _look_at(self, number: int) -> None:
        """Forget a segment whose files were changed: reading a map of one that was truncated would end the process."""
        segment = self._segments.get(number)
        if segment is not None and (segment.vectors, segment.index) != self._states(number):
            self._forget_segment(number)

    # ---- inside: writing

    def _append(self, digest: bytes, data: bytes | memoryview, grid: tuple[int, int, int]) -> bool:
        if time.monotonic() < self._refused_until:
            return False
        checksum, rows = zlib.crc32(data), len(data) // self._row_bytes
        try:
            number = self._choose_segment(len(data))
            self.folder.mkdir(parents=True, exist_ok=True)
            offset = _append(self._path(number, "vectors"), data)
            record = np.zeros(1, _RECORD)
            record[0] = (digest, offset, rows, checksum, grid, 0)
            record["record"] = zlib.crc32(record.tobytes()[:-4])
            _append(self._path(number, "index"), record.tobytes())
        except OSError as error:
            self._refused_until = time.monotonic() + _RETRY_SECONDS
            self._tell("Pages cannot be cached in %s (%s): searches will be slower.", self.folder, error)
            return False
        before, (vectors, index) = self._segments.get(number), self._states(number)
        sizes = (0, 0) if before is None else (before.vectors.size, before.index.size)
        if vectors is None or index is None or (vectors.size - len(data), index.size - len(record.tobytes())) != sizes:
            self._forget_segment(number)  # others write there, too: it is read again
        else:
            self._segments[number] = _Segment(vectors, index, None if before is None else before.mapped)
            self._keep_place(digest, _Place(number, offset, rows, checksum, grid))
        return True

    def _choose_segment(self, size: int) -> int:
        """Return where to append so many bytes."""
        self._look_at(self._current)
        if self._current not in self._segments or not self._has_room(self._current, size):
            newest = max([self._closed, *self._numbers()])
            if self._has_room(newest, size) and self._has_all_it_names(newest):
                self._current = newest
                self._read_index(newest)
            else:
                self._current = newest + 1
                self._make_room(max(size, self._segment_bytes))
        return self._current

    def _has_room(self, number: int, size: int) -> bool:
        vectors, index = self._states(number)
        for kind, state in (("vectors", vectors), ("index", index)):
            if state is None and os.path.lexists(self._path(number, kind)):  # a folder, maybe
                return False
        # A record that was cut off would shift all that are appended after it.
        is_torn = index is not None and index.size % _RECORD.itemsize > 0
        is_full = vectors is not None and vectors.size + size > max(size, self._segment_bytes)
        return number > self._closed and not is_torn and not is_full

    def _has_all_it_names(self, number: int) -> bool:
        """Whether no record is of vectors that were cut off: it would be taken for one of what is appended."""
        try:
            data = self._path(number, "index").read_bytes()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        vectors = _state(self._path(number, "vectors"))  # written before the records
        records = np.frombuffer(data[: len(data) - len(data) % _RECORD.itemsize], _RECORD)
        ends = records["offset"] + records["vectors"] * np.uint64(self._row_bytes)
        return not len(ends) or (vectors is not None and int(ends.max()) <= vectors.size)

    def _make_room(self, size: int) -> None:
        """Delete the oldest segments of a bounded cache until there is room for so many bytes."""
        if self._max_bytes is None:
            return
        states = {number: _state(self._path(number, "vectors")) for number in self._numbers()}
        sizes = {number: state.size for number, state in states.items() if state is not None}
        for number in sorted(sizes):
            if sum(sizes.values()) + size <= self._max_bytes:
                return
            del sizes[number]
            self._delete(number)

    def _rewrite_segments(self) -> None:
        """Copy what is wanted out of the segments that hold least of it, until half of what all hold is wanted.

        As many bytes are freed as are copied, or more. What was copied is deleted after that, so a process that is
        killed leaves pages twice. Who has views of deleted files keeps them.
        """
        if self._max_bytes is not None or self._has_enough_wanted():
            return
        self._read_indexes()
        if self._has_enough_wanted():
            return
        self._closed = max([self._closed, *self._numbers()])
        held: dict[int, list[bytes]] = {number: [] for number in self._segments}
        shares = dict.fromkeys(self._segments, 0.0)
        for digest, place in self._places.items():
            if place.is_wanted:
                held[place.segment].append(digest)
                shares[place.segment] += self._length(place) / self._segments[place.segment].vectors.size
        for number in sorted(held, key=lambda number: shares[number]):
            self._look_at(number)
            for digest in held[number]:
                data = self._read(digest)
                if data is not None and not self._append(digest, data, self._places[digest].grid):
                    return
            self._delete(number)
            if self._has_enough_wanted():
                return

    def _has_enough_wanted(self) -> bool:
        return sum(segment.vectors.size for segment in self._segments.values()) <= 2 * self._wanted_bytes

    def _delete(self, number: int) -> None:
        for kind in ("index", "vectors"):
            try:
                self._path(number, kind).unlink(missing_ok=True)
            except OSError as error:
                self._tell("A file of %s cannot be deleted (%s).", self.folder, error)
        self._forget_segment(number)

    # ---- inside: what is known

    def _keep_place(self, digest: bytes, place: _Place) -> None:
        self._forget_place(digest)
        self._places[digest] = place
        self._wanted_bytes += self._length(place)

    def _forget_place(self, digest: bytes) -> None:
        if (place := self._places.pop(digest, None)) is not None:
            self._want(place, False)

    def _want(self, place: _Place, is_wanted: bool) -> None:
        self._wanted_bytes += (is_wanted - place.is_wanted) * self._length(place)
        place.is_wanted = is_wanted

    def _forget_segment(self, number: int) -> None:
        if self._segments.pop(number, None) is not None:
            for digest in [digest for digest, place in self._places.items() if place.segment == number]:
                self._forget_place(digest)

    def _length(self, place: _Place) -> int:
        return place.vectors * self._row_bytes

    def _tell(self, message: str, *values: object) -> None:
        if message not in self._told:
            self._told.add(message)
            _LOGGER.warning(message, *values)

    def _numbers(self) -> list[int]:
        """Return the segments of which any file is there."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        return sorted({int(match[1]) for name in names if (match := _SEGMENT_FILE.fullmatch(name))})

    def _states(self, number: int) -> tuple[_State | None, _State | None]:
        return _state(self._path(number, "vectors")), _state(self._path(number, "index"))

    def _path(self, segment: int, kind: str) -> Path:
        return self.folder / f"{segment:06d}.{kind}"


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _state(path: Path) -> _State | None:
    """Return None for what is no file, or is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return _State(found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _append(path: Path, data: bytes | memoryview) -> int:
    """Append by one write, and return where the data begins; other processes may append at the same time."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if os.write(file, data) != len(data):
            raise OSError("no space left")
        return os.lseek(file, 0, os.SEEK_CUR) - len(data)
    finally:
        os.close(file)
