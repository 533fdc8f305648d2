"""Slow libraries: a test that needs one is skipped where it is not installed, and loads it when it runs.

Not by `pytest.importorskip`, which loads it at once: an interpreter takes 10 s for colpali-engine, and each of pytest's
processes collects all tests, but runs only some of them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

__all__ = ["LOAD_TORCH", "needs_colqwen", "needs_mteb", "needs_openai", "needs_sentence_transformers", "torch"]


def _needs(library: str, extra: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(library) is None, reason=f"the [{extra}] extra is not installed")


needs_colqwen = _needs("colpali_engine", "colqwen")
needs_mteb = _needs("mteb", "evaluate")
needs_openai = _needs("openai", "ask")
needs_sentence_transformers = _needs("sentence_transformers", "sentence-transformers")

LOAD_TORCH = [needs.mark for needs in (needs_colqwen, needs_mteb, needs_sentence_transformers)]


class _Torch:
    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever torch has
        if name.startswith("_"):  # pytest asks for such names of whatever a test module has
            raise AttributeError(name)
        return getattr(import_module("torch"), name)


torch: Any = _Torch()
