"""A Milvus client for Milvus Lite that reads from its files which collections there are, and what they say.

Asked, even for a list of their names, Milvus Lite 3.2 opens collections and keeps them in memory: 60 MB for each 512
pages of vectors. Where the files do not lie as they did in 3.2, it is asked all the same.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

__all__ = ["LiteClient"]

_LOGGER = logging.getLogger(__name__)


class LiteClient(MilvusClient):  # type: ignore[misc]  # pymilvus is untyped
    """A client of the Milvus Lite file at a path."""

    def __init__(self, path: str, **options: Any) -> None:  # noqa: ANN401 - passed on
        """Open the file; see `MilvusClient`."""
        super().__init__(path, **options)
        self._folder = Path(path) / "collections"

    def create_collection(self, collection_name: str, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        """Create a collection, also where a process died while it made or dropped one: its folder is there, in part.

        Without its schema Milvus Lite knows nothing of such a folder, and fails over it. If it has data, that is moved
        beside the collections: it may be a copy of a database that lacks files.
        """
        folder = self._folder / collection_name
        if folder.is_dir() and not self.has_collection(collection_name):
            if any(path.is_file() and path.name != "schema.json.tmp" for path in folder.rglob("*")):
                kept = self._folder.parent / "leftovers" / f"{collection_name}-{time.time_ns()}"
                kept.parent.mkdir(exist_ok=True)
                folder.rename(kept)
                _LOGGER.warning(
                    "Files of a collection that was half made or half dropped are in %s; delete them.", kept
                )
            else:
                shutil.rmtree(folder)
        super().create_collection(collection_name, *arguments, **options)

    def load_collection(self, collection_name: str, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        """Load a collection, also where a process died while it wrote an index, which Milvus Lite then fails over.

        Those of its indexes that are not there it makes anew from the vectors.
        """
        try:
            super().load_collection(collection_name, *arguments, **options)
        except MilvusException as error:
            indexes = list((self._folder / collection_name).rglob("indexes/*.*idx"))
            if not indexes:
                raise
            _LOGGER.info(
                "Collection %s cannot be loaded (%s): its indexes are made anew.", collection_name, error.message
            )
            with suppress(OSError):  # where nothing can be deleted, the same error comes again
                for path in indexes:
                    path.unlink()
            super().load_collection(collection_name, *arguments, **options)

    def list_collections(self, **options: Any) -> list[str]:  # noqa: ANN401
        """Return the names of all collections."""
        if not self._folder.is_dir():
            return list(super().list_collections(**options))
        return sorted(path.parent.name for path in self._folder.glob("*/schema.json"))

    def has_collection(self, collection_name: str, **options: Any) -> bool:  # noqa: ANN401
        """Whether there is such a collection."""
        if not self._folder.is_dir():
            return bool(super().has_collection(collection_name, **options))
        return (self._folder / collection_name / "schema.json").is_file()

    def describe_collection(self, collection_name: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return the fields' names and the properties."""
        schema = _read(self._folder / collection_name / "schema.json")
        if "fields" not in schema or "properties" not in schema:
            return dict(super().describe_collection(collection_name, **options))
        return schema

    def list_indexes(self, collection_name: str, field_name: str = "", **options: Any) -> list[str]:  # noqa: ANN401
        """Return the names of the fields that have an index."""
        manifest = _read(self._folder / collection_name / "manifest.json")
        if "index_specs" not in manifest:
            return list(super().list_indexes(collection_name, field_name, **options))
        return [name for name in manifest["index_specs"] if name == field_name or not field_name]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
