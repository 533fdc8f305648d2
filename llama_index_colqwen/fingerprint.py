"""What decides the meaning of an embedder's vectors.

Kept with every collection and compared whenever one is opened. Knows nothing of any one embedder.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from llama_index_colqwen.errors import InvalidOptionError, check_count

__all__ = ["EmbedderFingerprint", "fingerprint_digest"]


@dataclass(frozen=True)
class EmbedderFingerprint:
    """Everything that decides what an embedder's vectors mean; vectors of equal fingerprints can be compared.

    Attributes:
        model: The model's name on the hub, or for one that is not there what kind it is.
        revision: The weights' (or the method's) version.
        dim: Length of each vector.
        options: Whatever else changes the vectors, such as a query prefix or token pooling.
        location: The folder that the model was loaded from, for one that is not on the hub, or the address of the
            service that has it; not compared, so that an index and a model can move.
    """

    model: str
    revision: str
    dim: int
    options: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    location: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Check the values: they are written down with collections, and compared later.

        Raises:
            InvalidOptionError: If a value is not of its kind.
        """
        for name in ("model", "revision"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InvalidOptionError(f"A fingerprint's {name} is a text, not empty; got {getattr(self, name)!r}.")
        check_count("A fingerprint's dim", self.dim)
        if not isinstance(self.options, Mapping):
            raise InvalidOptionError(f"A fingerprint's options are a mapping of names to values; got {self.options!r}.")
        for option, value in self.options.items():
            plain = value is None or isinstance(value, (str, int, float))
            if not isinstance(option, str) or not plain or (isinstance(value, float) and not math.isfinite(value)):
                raise InvalidOptionError(
                    "A fingerprint's options are texts, finite numbers, truth values or None; got "
                    f"{option!r}: {value!r}."
                )

    def to_json(self) -> str:
        """Write as JSON with sorted keys, so that equal fingerprints are equal texts."""
        return json.dumps({**asdict(self), "options": dict(self.options)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EmbedderFingerprint:
        """Read what `to_json` wrote.

        Raises:
            InvalidOptionError: If it is no fingerprint.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise InvalidOptionError(f"This is no embedder's fingerprint ({error}): {text[:200]!r}.") from error

    def __str__(self) -> str:
        """Describe for error messages."""
        options = "".join(f", {name}={value!r}" for name, value in sorted(self.options.items()))
        where = f" in {self.location}" if self.location else ""
        return f"{self.model}{where} (revision {self.revision}, {self.dim}-dim{options})"


def fingerprint_digest(fingerprint: EmbedderFingerprint) -> str:
    """Return a short name of what a fingerprint compares by: equal fingerprints have equal ones."""
    return hashlib.sha256(replace(fingerprint, location="").to_json().encode()).hexdigest()[:16]
