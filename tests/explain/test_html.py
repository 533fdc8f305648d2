"""The HTML file: nothing from elsewhere, everything escaped, and for the keyboard."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.schema import ImageNode, NodeWithScore

from llama_index_colqwen import (
    ColQwenIndex,
    Explanation,
    InvalidOptionError,
    LexicalEmbedder,
    PatchGrid,
    TokenMatch,
    show_pages,
)
from tests.explain.test_explanation import NamingEmbedder, index_of, page_of

EVIL = "<script>alert(1)</script> \"quoted\" & 'single' <img src=x onerror=alert(2)>"


class Checking(HTMLParser):
    """Notes every element, and refuses what a page needs a network or a script for."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "iframe", "object", "link", "form", "base"}
        for name, value in attrs:
            assert not name.startswith("on")
            if name in {"src", "href", "srcset", "action"}:
                assert re.match("data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$", value or "")
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(html: str) -> Checking:
    found = Checking()
    found.feed(html)
    found.close()
    return found


@pytest.fixture
def evil(tmp_path: Path) -> Explanation:
    document = page_of(["harbour", "<b>crane</b>", "<script>"], file_name=f"{EVIL}.pdf", page_label="<i>iv")
    with ColQwenIndex.from_documents([document], NamingEmbedder(), uri=tmp_path / "x.db", show_progress=False) as index:
        return index.explain(f"{EVIL} harbour", index.nodes()[0])


def test_queries_file_names_and_words_are_text_and_never_markup(evil: Explanation) -> None:
    found = read(evil.to_html())
    assert "<script>alert(1)</script>" in "".join(found.texts)
    assert [tag for tag, _ in found.tags if tag in {"script", "img", "b"}].count("script") == 0
    assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in found.tags)  # type: ignore[union-attr]
    gallery = read(show_pages([evil])._repr_html_())
    assert f"{EVIL}.pdf, page <i>iv" in "".join(gallery.texts)


def test_a_page_is_one_file_that_keyboards_and_screen_readers_know(evil: Explanation) -> None:
    html = evil.to_html()
    found = read(html)
    assert re.search(r"@import|url\(|https?:", html) is None
    assert "default-src 'none'" in html
    inputs = [attributes for tag, attributes in found.tags if tag == "input"]
    assert len(inputs) == len(evil.tokens) + 1
    assert {one["type"] for one in inputs} == {"radio"}
    assert {one["name"] for one in inputs} == {"token"}  # one group: arrow keys go through it
    assert ["checked" in one for one in inputs] == [True] + [False] * len(evil.tokens)
    assert len({one["id"] for one in inputs}) == len(inputs)
    tags = [tag for tag, _ in found.tags]
    assert {"fieldset", "legend", "main", "h1", "figure"} <= set(tags)
    assert ("html", {"lang": "en"}) in found.tags
    assert "prefers-color-scheme:dark" in html
    assert all("alt" in attributes for tag, attributes in found.tags if tag == "img")


def test_padding_has_a_line_and_no_button(tmp_path: Path) -> None:
    with index_of(tmp_path, [page_of(["harbour", "<pad>"])], NamingEmbedder()) as index:
        html = index.explain("harbour <pad>", index.nodes()[0]).to_html()
    assert "1 tokens that are no words" in html
    assert [attributes["id"] for tag, attributes in read(html).tags if tag == "input"] == ["t0", "t1"]


def test_each_token_has_its_layer() -> None:
    tokens = [TokenMatch(f"t{n}", 1.0, True, True, [n], np.eye(4, dtype=np.float32)[n]) for n in range(4)]
    from llama_index_colqwen import Page
    from llama_index_colqwen.explain.similarities import patches

    page = Page("p", "d", "a.pdf", 1, "", node=ImageNode(id_="p", metadata={"file_name": "a.pdf"}).to_dict())
    found = Explanation("q", page, tokens, "patches", patches(PatchGrid(2, 2)).boxes, PatchGrid(2, 2))
    html = found.to_html()
    for number in range(5):
        assert html.count(f'class="layer o{number}"') == 1
        assert f":has(#t{number}:checked) .o{number}" in html
    assert "has no image" in html
    assert 'style="left:50.00%;top:50.00%;width:50.00%;height:50.00%"' in html


# ---- the gallery


def test_a_gallery_shows_score_file_and_page_of_hits_and_explanations(tmp_path: Path) -> None:
    with index_of(tmp_path, [page_of(["harbour", "crane"])], LexicalEmbedder()) as index:
        hits = index.as_retriever().retrieve("harbour crane")
        explanations = [index.explain("harbour crane", hit) for hit in hits]
    for shown, score in (
        (show_pages(hits), hits[0].get_score()),
        (show_pages(iter(explanations)), hits[0].get_score()),
    ):
        html = shown._repr_html_()
        assert f"{score:.3f}" in html
        assert "report.pdf, page iv" in html
        assert html.count("data:image/jpeg") == 1
        assert f"{score:.3f}" in repr(shown)
        assert "report.pdf, page iv" in repr(shown)
    assert "harbour, crane" in repr(show_pages(explanations)) or "crane, harbour" in repr(show_pages(explanations))
    assert "harbour" not in repr(show_pages(hits))


def test_a_gallery_of_pages_without_images_or_of_none(tmp_path: Path) -> None:
    with index_of(tmp_path, [page_of(["harbour", "crane"])]) as index:
        hits = index.as_retriever().retrieve("harbour")
    Path(str(hits[0].node.image_path)).unlink()
    assert "is gone" in show_pages(hits)._repr_html_()
    text_only = NodeWithScore(node=ImageNode(id_="x", text="y", metadata={}))
    assert "has no page image" in show_pages([text_only])._repr_html_()
    assert repr(show_pages([])) == "No pages."
    assert "No pages." in show_pages([])._repr_html_()
    with pytest.raises(InvalidOptionError, match="hits or explanations; got str"):
        show_pages(["page"])  # type: ignore[list-item]
