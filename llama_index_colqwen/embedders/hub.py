"""A model's name -> the folder that its files are in, from the Hugging Face hub where need be.

Only what models are made of is fetched: settings, tokenizers and `.safetensors`; never code, never pickles. Knows
nothing of what is in the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index_colqwen.errors import InvalidOptionError, ModelError, ModelNotFoundError
from llama_index_colqwen.fingerprint import EmbedderFingerprint

__all__ = ["Checkpoint", "locate", "one_line"]

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Checkpoint:
    """A model's files.

    Attributes:
        name: As it was asked for: a hub id, or a folder.
        folder: Where the files are.
        revision: The hub's commit; for a folder, a hash of its settings and weights.
        is_folder: Whether it was asked for as a folder.
    """

    name: str
    folder: Path
    revision: str
    is_folder: bool

    def json(self, file_name: str) -> dict[str, Any]:
        """Read a file of settings.

        Raises:
            ModelError: If it is not there, or is not a JSON object.
        """
        try:
            content = json.loads((self.folder / file_name).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.name}: {file_name} cannot be read ({error}).") from error
        if not isinstance(content, dict):
            raise ModelError(f"{self.name}: {file_name} is not a JSON object.")
        return content

    def has(self, file_name: str) -> bool:
        """Tell whether there is such a file."""
        return (self.folder / file_name).is_file()

    def fingerprint(
        self, kind: str, revision: str, dim: int, options: dict[str, str | int | float | bool | None]
    ) -> EmbedderFingerprint:
        """Describe an embedder that runs this model; a folder's name says nothing, so `kind` stands for it."""
        if self.is_folder:
            return EmbedderFingerprint(kind, revision, dim, options, location=str(self.folder))
        return EmbedderFingerprint(self.name, revision, dim, options)


def locate(name: str, revision: str | None = None, *, local_files_only: bool = False) -> Checkpoint:
    """Find a model: in a folder of that name, in the local cache of the hub, or on the hub unless that is forbidden.

    Raises:
        ModelNotFoundError: If it is nowhere, or the hub cannot be reached.
        InvalidOptionError: If a revision is asked for of a folder.
    """
    folder = Path(os.path.expanduser(name))
    if name and folder.is_dir():
        if revision is not None:
            raise InvalidOptionError(f"revision={revision!r} is for models on the hub; {name} is a folder.")
        return Checkpoint(name, folder.resolve(), _hash_files(folder), True)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise ModelNotFoundError(f"There is no folder {name!r}.")
    folder = _download(name, revision, local_files_only)
    return Checkpoint(name, folder, folder.name, False)


def _download(name: str, revision: str | None, local_files_only: bool) -> Path:
    """Return the folder of a hub model's snapshot, whose name is the commit."""
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import tqdm

    class LateBar(tqdm):  # type: ignore[misc]
        """A progress bar for downloads alone, and not for finding files in the cache."""

        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **{**options, "delay": 1})

    try:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=_FILES,
            tqdm_class=LateBar,
            # Offline, versions before 2.4 ask the hub all the same for the list of a commit's files.
            local_files_only=local_files_only or is_offline_mode(),
        )
        return Path(found)
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{name} is gated: ask for access at https://huggingface.co/{name}, then log in with: hf auth login"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"There is no model {name!r}: no such folder here, and none of that name on the hub that you may read."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{name} has no revision {revision!r}.") from error
    except LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        if local_files_only:
            why = "local_files_only forbids to ask the hub"
        elif is_offline_mode():
            why = "HF_HUB_OFFLINE forbids to ask the hub"
        elif isinstance(cause, HfHubHTTPError):
            why = f"the hub does not give it ({one_line(cause)})"
        else:
            why = f"the hub cannot be reached ({one_line(cause)})"
        at = f" at revision {revision}" if revision else ""
        raise ModelNotFoundError(
            f"{name}{at} is not in the local cache, or not all of it, and {why}. On a machine with network run: hf "
            f"download {name}; then copy the cache, or give the folder's path as the model's name."
        ) from error
    except Exception as error:  # a connection that breaks off is of a type of the HTTP client's
        raise ModelNotFoundError(f"{name} cannot be fetched from the hub, try again: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Write what an error says on one line."""
    return " ".join(str(error).split())


def _hash_files(folder: Path) -> str:
    """Hash a folder's settings, and its weights by the beginning of every tensor: training moves them all."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.json")):
        settings = path.read_bytes()
        if path.name == "adapter_config.json":  # its base may lie elsewhere, and has a hash of its own
            settings = re.sub(rb'"base_model_name_or_path":\s*"[^"]*"', b"", settings)
        digest.update(settings)
    # The parts of a sentence-transformers model are in folders of their own.
    weights = "**/*.safetensors" if (folder / "modules.json").is_file() else "*.safetensors"
    for path in sorted(folder.glob(weights)):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, path.stat().st_size))
            digest.update(header)
            try:
                tensors = json.loads(header)
            except ValueError:
                continue  # a broken file, which is reported when it is loaded
            for name, tensor in sorted(tensors.items()):
                if name != "__metadata__":
                    start, end = tensor["data_offsets"]
                    file.seek(8 + length + start)
                    digest.update(file.read(min(end - start, _SAMPLE_BYTES)))
    return digest.hexdigest()[:40]
