"""Embedders for actors, in a module that takes little time to import: each actor does."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from llama_index_colqwen import ModelError, MultiVector, Page
from llama_index_colqwen.testing import FakeEmbedder
from tests.fakes import PNG


class Slow(FakeEmbedder):
    """Takes a while for a page."""

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        time.sleep(0.02 * len(pages))
        return super().embed_pages(pages)


class Poisoned(FakeEmbedder):
    """Dies with one page, and fails with another."""

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        for page in pages:
            if page.text == "page deadly":
                os._exit(1)
            if page.text == "page bad":
                raise ZeroDivisionError("a bad page")
        return super().embed_pages(pages)


class NeedsPictures(FakeEmbedder):
    """Reads images, which are not on its machine."""

    sees_images = True

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        assert all(page.image == PNG for page in pages)
        return super().embed_pages(pages)


def fail() -> FakeEmbedder:
    """Make nothing."""
    raise ModelError("There is no model 'x' on this machine.")
