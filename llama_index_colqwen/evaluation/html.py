"""An evaluation -> one HTML file to look at: figures, and the pictures of what was found and of what was missed.

It has no script and nothing from elsewhere, and every text is escaped. Each page's picture is in it once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError, UnreadableDocumentError
from llama_index_colqwen.evaluation.answer import Answer
from llama_index_colqwen.evaluation.figures import Figure
from llama_index_colqwen.explain.html import data_uri
from llama_index_colqwen.images import thumbnail
from llama_index_colqwen.nodes import PageNode, caption, page_from_node

__all__ = ["html_page", "html_table", "write_html"]

_SHOWN_HITS = 3
_SIDE = 420


def write_html(
    *, title: str, depth: int, figures: Mapping[str, Mapping[str, Figure]], answers: Sequence[Answer]
) -> str:
    """Write the file; questions whose right pages stand lowest come first.

    Args:
        title: Says what was evaluated.
        depth: How many pages were looked at for each question.
        figures: By way of ranking, and by measure.
        answers: What was found for each question.
    """
    pictures = _Pictures()
    lowest_first = sorted(answers, key=lambda answer: -(answer.rank or depth + 1))
    shown = "".join(_answer(answer, depth, pictures) for answer in lowest_first)
    first = sum(answer.rank == 1 for answer in answers)
    missed = sum(answer.rank is None for answer in answers)
    measures = list(next(iter(figures.values())))
    table = html_table(["", *measures], [[way, *map(str, row.values())] for way, row in figures.items()])
    said = (
        f"Of {len(answers)} questions, {first} have a right page first, and {missed} none among the first {depth}. "
        "Figures are means over questions, with 95% bootstrap intervals."
    )
    return html_page(title, f"{table}<p>{said}</p>{shown}", pictures.style)


def html_page(title: str, body: str, style: str = "") -> str:
    """Write a file of this kind: its title is escaped, its body is HTML."""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
<main><h1>{escape(title)}</h1>
{body}
</main>
</html>
"""


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table, whose first cells name their rows."""
    head = "".join(f'<th scope="col">{escape(cell)}' for cell in heads)
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}' + "".join(f"<td>{escape(cell)}" for cell in rest)
        for first, *rest in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}<tbody>{lines}</table></div>'


class _Pictures:
    """The pages that are shown: each is a class of a style sheet, whose background is the page's picture."""

    def __init__(self) -> None:
        self.style = ""
        self._names: dict[str, str] = {}

    def name(self, page: PageNode) -> str:
        """Return the class of a page."""
        if page.node_id not in self._names:
            self._names[page.node_id] = name = f"p{len(self._names)}"
            try:
                image = thumbnail(page_from_node(page), _SIDE)
            except (DocumentNotFoundError, InvalidOptionError, UnreadableDocumentError):
                self.style += f'.{name}::after{{content:"The picture is gone."}}'  # the page is named beneath
            else:
                size = f"aspect-ratio:{image.width}/{image.height}"
                self.style += f'.{name}{{background-image:url("{data_uri(image, "jpeg")}");{size}}}'
        return self._names[page.node_id]


def _answer(answer: Answer, depth: int, pictures: _Pictures) -> str:
    """Write a question, what was found for it, and the right pages that were not."""
    right, found = {page.node_id for page in answer.right}, {hit.node_id for hit in answer.hits}
    figures = [
        _figure(pictures.name(hit.node), hit.node, f"{rank}. score {hit.get_score():.3f}", hit.node_id in right)
        for rank, hit in enumerate(answer.hits, start=1)
        if rank <= _SHOWN_HITS or hit.node_id in right
    ]
    missed = [page for page in answer.right if page.node_id not in found]
    figures += [_figure(pictures.name(page), page, "not found", True) for page in missed]
    place = f"right page number {answer.rank}" if answer.rank else f"no right page among the first {depth}"
    by_words = f"BM25 {f'number {answer.bm25_rank}' if answer.bm25_rank else 'none'}"
    kind = "first" if answer.rank == 1 else "lower" if answer.rank else "missed"
    return (
        f'<details class="{kind}"{"" if kind == "first" else " open"}><summary><b>{escape(answer.question.id)}</b> '
        f"{escape(answer.question.query)} <small>{place}; {by_words}</small></summary>"
        f'<div class="pages">{"".join(figures)}</div></details>'
    )


def _figure(name: str, page: PageNode, said: str, is_right: bool) -> str:
    label = escape(caption(page))
    return (
        f'<figure{" class=right" * is_right}><div class="picture {name}" role="img" aria-label="{label}"></div>'
        f"<figcaption><b>{'right page, ' * is_right}{said}</b> {label}</figcaption></figure>"
    )


_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1a1a24;--soft:#5a5a68;--line:#c9c9d4;--right:#1b7a3d;--wrong:#a33}
@media(prefers-color-scheme:dark){:root{--ground:#15151c;--ink:#ededf2;--soft:#a9a9b8;--line:#44444f;--right:#5cc863;
--wrong:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:16px}
h1{font-size:1.4rem;line-height:1.25;overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse}
th,td{text-align:left;padding:4px 16px 4px 0;border-bottom:1px solid var(--line);white-space:nowrap}
td{font-variant-numeric:tabular-nums}
details{border-left:6px solid var(--line);padding:4px 0 4px 12px;margin:8px 0}
details.missed{border-color:var(--wrong)}
details.first{border-color:var(--right)}
summary{cursor:pointer;overflow-wrap:anywhere}
small{color:var(--soft)}
.pages{display:flex;flex-wrap:wrap;gap:16px;margin:12px 0}
figure{margin:0;width:220px;max-width:100%}
.picture{border:1px solid var(--line);background:#fff center/contain no-repeat;color:#5a5a68}
figure.right .picture{outline:4px solid var(--right)}
figcaption{overflow-wrap:anywhere;font-size:.9rem}
figure.right b{color:var(--right)}
"""
