"""Paths, folders, addresses and bytes -> the files to read.

Knows nothing of what is in a file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from llama_index_colqwen.errors import DocumentError, DocumentNotFoundError, InvalidOptionError, in_one_line
from llama_index_colqwen.pages import join_surrogates
from llama_index_colqwen.reading.rendering import SUPPORTED_SUFFIXES

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["Source", "SourceFile", "find_files", "sha256"]

Source: TypeAlias = str | PurePath | bytes
"""A path or an address of a file or folder, or a file's bytes."""

_AnyPath = TypeVar("_AnyPath", bound=PurePath)


@dataclass(frozen=True)
class SourceFile:
    """A file that was found: what it is called in text, where it is, how to get its bytes, and its sha256 if known.

    Errors call it by its path within the folder that was given, if that is not its name.
    """

    name: str
    path: str | None
    source: Path | bytes | None
    fs: AbstractFileSystem | None = None
    document_id: str = ""
    within: str = ""

    @property
    def suffix(self) -> str:
        """The type that the name says, in lower case, with its dot."""
        return PurePath(self.name).suffix.lower()

    def load(self) -> Path | bytes:
        """Return the file's path, or its bytes where it is on an `fs`.

        Raises:
            DocumentError: If it cannot be fetched.
        """
        if self.source is not None:
            return self.source
        try:
            data: bytes = self.fs.cat_file(self.path)  # type: ignore[union-attr]
        except Exception as error:  # whatever a file system raises
            raise DocumentError(f"{self.name}: the file cannot be fetched ({in_one_line(error)}).") from error
        return data


def find_files(
    source: Source | Sequence[Source],
    extra_info: dict[str, Any],
    image_dir: str | Path | None,
    fs: AbstractFileSystem | None,
) -> list[SourceFile]:
    """Look up files and those in folders, all but what is hidden or in `image_dir`; `extra_info` may name bytes."""
    if not isinstance(source, (str, PurePath, bytes, Iterable)):
        raise InvalidOptionError(f"A source is a path, bytes, or a list of these; got {type(source).__name__}.")
    sources = [source] if isinstance(source, (str, PurePath, bytes)) else list(source)
    if not sources:
        raise DocumentNotFoundError("No files were given: the list of paths is empty.")
    files: list[SourceFile] = []
    for one in sources:
        if isinstance(one, bytes):
            name = str(extra_info.get("file_name") or f"document-{sha256(one)[:8]}")
            files.append(SourceFile(join_surrogates(name), extra_info.get("file_path"), one))
        elif isinstance(one, (str, PurePath)):
            files.extend(_find_path(str(one), image_dir, fs))
        else:
            raise InvalidOptionError(f"A source is a path or bytes; got {type(one).__name__}.")
    return files


def _find_path(source: str, image_dir: str | Path | None, fs: AbstractFileSystem | None) -> Iterable[SourceFile]:
    if fs is not None:
        return _find_remote(source, fs)
    return _find_url(source) if "://" in source else _find_local(source, image_dir)


def _find_url(url: str) -> Iterable[SourceFile]:
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(url)
        # Known by their addresses: a path alone would be one on this machine's disk.
        return [replace(file, path=fs.unstrip_protocol(file.path)) for file in _find_remote(path, fs)]
    except DocumentError:
        raise
    except Exception as error:  # no package for the protocol, no rights, no network
        raise DocumentError(f"{join_surrogates(url)}: cannot be looked up ({in_one_line(error)}).") from error


def _find_local(source: str, image_dir: str | Path | None) -> Iterable[SourceFile]:
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        written = Path(image_dir).resolve() if image_dir else None
        inside = [
            child
            for child in sorted(path.rglob("*"))
            if child.is_file()
            and not _is_hidden(child.relative_to(path))
            and not (written and child.resolve().is_relative_to(written))
        ]
        chosen = _readable(inside, str(path))
    elif path.exists():
        chosen = [path]
    else:
        raise DocumentNotFoundError(f"{join_surrogates(str(path))}: there is no such file or folder.")
    return [
        SourceFile(join_surrogates(child.name), str(child.resolve()), child, within=_within(child, path))
        for child in chosen
    ]


def _find_remote(path: str, fs: AbstractFileSystem) -> Iterable[SourceFile]:
    if fs.isdir(path):
        root = PurePosixPath(fs._strip_protocol(path))
        inside = [PurePosixPath(child) for child in sorted(fs.find(path))]
        chosen = _readable([child for child in inside if not _is_hidden(child.relative_to(root))], path)
        return [
            SourceFile(join_surrogates(child.name), str(child), None, fs, within=_within(child, root))
            for child in chosen
        ]
    if not fs.exists(path):
        raise DocumentNotFoundError(f"{join_surrogates(path)}: there is no such file or folder on {type(fs).__name__}.")
    return [SourceFile(join_surrogates(PurePosixPath(path).name), path, None, fs)]


def _within(path: PurePath, given: PurePath) -> str:
    return "" if path == given else join_surrogates(path.relative_to(given).as_posix())


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _readable(inside: Sequence[_AnyPath], folder: str) -> list[_AnyPath]:
    """Keep the files of a folder that are of a type that is read; a folder without any is an error."""
    chosen = [child for child in inside if child.suffix.lower() in SUPPORTED_SUFFIXES]
    if chosen:
        return chosen
    suffixes = sorted({child.suffix.lower() or "(none)" for child in inside})
    found = f"only files of type {', '.join(suffixes)}" if suffixes else "no files at all"
    supported = ", ".join(sorted(SUPPORTED_SUFFIXES))
    raise DocumentNotFoundError(join_surrogates(f"{folder}: the folder has {found}; supported are {supported}."))


def sha256(source: Path | bytes) -> str:
    """Return the hexadecimal SHA-256 of a file or of its bytes."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    try:
        with source.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DocumentError(f"{join_surrogates(source.name)}: the file cannot be read ({error.strerror}).") from error
    return digest.hexdigest()
