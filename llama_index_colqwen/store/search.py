"""What every way of searching does: `lite_search` in this process, `milvus_search` in Milvus.

The store writes pages' rows and exact vectors, and tells a `CandidateSearch` of each change, before and after; the
search keeps what it needs to put candidates forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from llama_index_colqwen.late_interaction.maxsim import Candidate
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.pages import Page
from llama_index_colqwen.store.schema import PageEntry
from llama_index_colqwen.store.vector_cache import CachedVectors

__all__ = ["CandidateSearch", "NewPage", "PageFilter", "lost_pages"]


@dataclass(frozen=True)
class NewPage:
    """A page that is being stored: what becomes its row, its entry, and its vectors, as they came and encoded."""

    page: Page
    entry: PageEntry
    vectors: MultiVector = field(repr=False)
    encoded: CachedVectors = field(repr=False)


@dataclass(frozen=True)
class PageFilter:
    """Which pages to look at.

    Attributes:
        expression: Of Milvus's language; keeps all pages that match, and maybe others. Empty if it keeps all.
        matches: Whether a page's metadata match.
        key: Equal for equal filters.
    """

    expression: str
    matches: Callable[[Mapping[str, Any]], bool]
    key: str = ""

    def keeps(self, entry: PageEntry) -> bool:
        """Whether a page matches."""
        return self.matches(entry.metadata)


class CandidateSearch(Protocol):
    """One way of searching a collection, safe for many threads."""

    def changing(self) -> AbstractContextManager[None]:
        """Return what is held around each change, from Milvus to here; after an error, what is known is read again."""

    def write(self, pages: Sequence[NewPage]) -> None:
        """Take pages in whose rows are about to be written: what Milvus searches has to be there before the row is."""

    def written(self, pages: Sequence[NewPage], before: Sequence[PageEntry]) -> None:
        """Take note that the rows are written, in place of those before."""

    def update(self, pages: Sequence[tuple[Page, PageEntry]]) -> None:
        """Take in changed metadata of pages whose rows are about to be written; their vectors stay."""

    def updated(self, pages: Sequence[tuple[Page, PageEntry]]) -> None:
        """Take note that these rows are written."""

    def remove(self, deleted: Sequence[PageEntry]) -> None:
        """Forget pages whose rows were deleted."""

    def entries(self, page_ids: Sequence[str]) -> dict[str, PageEntry]:
        """Return what is known of these pages, by id; those that are not stored are absent."""

    def find(self, expression: str = "", keeps: Callable[[PageEntry], bool] | None = None) -> list[PageEntry]:
        """Return all pages that match.

        Args:
            expression: Of Milvus's language; keeps all that match, and maybe others.
            keeps: Whether a page matches; all do by default.
        """

    def lost(self, entries: Iterable[PageEntry]) -> set[str]:
        """Return the ids of those whose vectors are gone: they cannot be found until they are stored again."""

    def candidates(
        self, query: MultiVector, candidate_k: int, chosen: PageFilter | None, exact: bool
    ) -> Iterator[Candidate]:
        """Put forward the pages that may score highest, or, if `exact`, all; see `MilvusPageStore.candidates`."""

    def check(self, entries: Mapping[str, PageEntry]) -> int:
        """Compare what this search keeps with the pages that there are, repair it, and return how many were wrong."""

    def close(self) -> None:
        """Write down what is worth keeping."""


def lost_pages(collection_name: str, uri: str, page_ids: Iterable[str]) -> str:
    """Say that pages have lost their vectors, and what to do."""
    lost = sorted(page_ids)
    some = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
    return (
        f"{len(lost)} pages of collection {collection_name!r} in {uri} have lost their vectors and cannot be found "
        f"({some}): index their files again, or run `colqwen info --check`."
    )
