"""Pages that were found -> a gallery in a notebook, or a table in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from llama_index.core.schema import NodeWithScore
from PIL import Image

from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError, UnreadableDocumentError
from llama_index_colqwen.explain.explanation import Explanation
from llama_index_colqwen.explain.html import data_uri
from llama_index_colqwen.images import thumbnail
from llama_index_colqwen.nodes import caption, page_from_node
from llama_index_colqwen.text_tables import as_text

__all__ = ["PageGallery", "show_pages"]

_SIDE = 900


@dataclass(frozen=True)
class PageGallery:
    """What `show_pages` returns: a notebook shows the pages' pictures, a terminal a table.

    Attributes:
        pages: What was given.
    """

    pages: list[NodeWithScore | Explanation]

    def _repr_html_(self) -> str:
        figures = "".join(_figure(page) for page in self.pages)
        return f'<div style="display:flex;flex-wrap:wrap;gap:16px">{figures or "No pages."}</div>'

    def __repr__(self) -> str:
        """Return a table: rank, score, page, and for explained pages the words that matched."""
        from rich.table import Table
        from rich.text import Text

        table = Table("Rank", "Score", "Page", "Matched")
        for rank, page in enumerate(self.pages, start=1):
            table.add_row(str(rank), _score(page), Text(_title(page)), Text(_matched(page)))
        return as_text(table if self.pages else "No pages.", width=100)


def show_pages(pages: Iterable[NodeWithScore | Explanation]) -> PageGallery:
    """Show pages side by side in a notebook, with score, file and page; in a terminal, as a table.

    Args:
        pages: Hits of a retriever; or their explanations, which show what matched:
            `show_pages(index.explain(question, hit) for hit in hits)`.

    Raises:
        InvalidOptionError: If one is neither.
    """
    shown = list(pages)
    for page in shown:
        if not isinstance(page, (NodeWithScore, Explanation)):
            raise InvalidOptionError(f"Pages to show are hits or explanations; got {type(page).__name__}.")
    return PageGallery(shown)


def _figure(page: NodeWithScore | Explanation) -> str:
    try:
        picture = f'<img src="{data_uri(_picture(page), "jpeg")}" alt="" style="width:100%;border:1px solid #999">'
    except (DocumentNotFoundError, UnreadableDocumentError, InvalidOptionError) as error:
        picture = f"<p>{escape(str(error))}</p>"
    words = f"<br>{escape(matched)}" if (matched := _matched(page)) else ""
    return (
        f'<figure style="margin:0;width:320px">{picture}<figcaption style="overflow-wrap:anywhere">'
        f"<b>{_score(page)}</b> {escape(_title(page))}{words}</figcaption></figure>"
    )


def _picture(page: NodeWithScore | Explanation) -> Image.Image:
    if isinstance(page, Explanation):
        image = page.to_image()
        image.thumbnail((_SIDE, _SIDE))
        return image
    return thumbnail(page_from_node(page.node), _SIDE)


def _title(page: NodeWithScore | Explanation) -> str:
    return page.title if isinstance(page, Explanation) else caption(page.node)


def _score(page: NodeWithScore | Explanation) -> str:
    score = page.score
    return "" if score is None else f"{score:.3f}"


def _matched(page: NodeWithScore | Explanation) -> str:
    if not isinstance(page, Explanation):
        return ""
    best = sorted((match for match in page.tokens if match.is_word and match.is_clear), key=lambda match: -match.share)
    return ", ".join(dict.fromkeys(match.text for match in best[:6]))
