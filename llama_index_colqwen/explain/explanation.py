"""A question and a page that was found -> an `Explanation`: which patch or word matched, from stored vectors.

No forward pass for the page, and its image is needed only to draw on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from PIL import ExifTags

from llama_index_colqwen.embedders.protocol import (
    MultiVectorEmbedder,
    normalized,
    page_words,
    query_tokens,
    recommended_candidate_vectors,
)
from llama_index_colqwen.embedders.recent import embed_queries
from llama_index_colqwen.errors import (
    DocumentNotFoundError,
    InvalidOptionError,
    QueryError,
    StoreError,
    UnreadableDocumentError,
)
from llama_index_colqwen.explain.html import Layer, write_html
from llama_index_colqwen.explain.picture import draw_boxes, draw_heat, heat_overlay
from llama_index_colqwen.explain.regions import Region, find_regions
from llama_index_colqwen.explain.similarities import (
    NO_WORD,
    Box,
    Floats,
    Places,
    TokenMatch,
    heat,
    match_tokens,
    patches,
    words,
)
from llama_index_colqwen.images import fit_size, to_rgb
from llama_index_colqwen.late_interaction.multivectors import MultiVector, PatchGrid
from llama_index_colqwen.nodes import caption, node_from_page, word_boxes
from llama_index_colqwen.pages import Page, WordBox
from llama_index_colqwen.reading.redraw import size_in_points
from llama_index_colqwen.store.page_store import MilvusPageStore

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Explanation", "explain"]

_ALPHA = 0.7
_OUTSTANDING = 0.33  # of what the clearest token stands out: function words win somewhere, too
_PICTURE_PIXELS = 1_000_000  # of a letter page, 98 dpi: print stays legible


@dataclass(frozen=True, eq=False)
class Explanation:
    """Which patches or words of a page matched a question, and how much each token of it gave to the score.

    Attributes:
        query: What was asked.
        page: The page, as it is stored.
        tokens: A `TokenMatch` for each token of the query. Their shares add up to the score.
        kind: What `boxes` are: "patches", of a visual model; "words", of an embedder of words; "text", where it is not
            known what the page's vectors stand for: the words of the page that are words of the question; or "nothing",
            where the page has no words either.
        boxes: The places that tokens can match: shape (num_places, 4), left, top, right, bottom as fractions of the
            page, from its top left. Patches are line by line, words in the order of the page's text.
        grid: How patches lie.
        notes: What else is to be known, in sentences.
    """

    query: str
    page: Page
    tokens: list[TokenMatch]
    kind: Literal["patches", "words", "text", "nothing"]
    boxes: npt.NDArray[np.float64] = field(repr=False)
    grid: PatchGrid | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The page's MaxSim score: the sum of the tokens' shares, in their order."""
        return sum(match.share for match in self.tokens)

    @property
    def title(self) -> str:
        """The page, in words: `report.pdf, page iv`."""
        return caption(node_from_page(self.page))

    # ---- regions

    def regions(self, max_regions: int = 3, coverage: float = 0.8) -> list[Region]:
        """Return the few rectangles that carry most of the score, the largest share first.

        Args:
            max_regions: How many at most.
            coverage: How much of what is matched on the page is enough, from 0 to 1.

        Returns:
            None at all if nothing of the page is matched clearly.
        """
        if self.kind == "nothing":
            return []
        return find_regions(self.tokens, self._places, self._heat(None), self._words, coverage, max_regions)

    def crop(self, region: Region, margin: float = 0.01) -> Image.Image:
        """Cut a region out of the page's image, with a margin as a fraction of the page; RGB.

        Raises:
            DocumentNotFoundError: If the image file is gone.
            UnreadableDocumentError: If it is no image.
        """
        image = self._image()
        left, top, right, bottom = region.scaled(*image.size)
        more_x, more_y = margin * image.width, margin * image.height
        corners = (
            max(math.floor(left - more_x), 0),
            max(math.floor(top - more_y), 0),
            min(math.ceil(right + more_x), image.width),
            min(math.ceil(bottom + more_y), image.height),
        )
        return image.crop(corners)

    @cached_property
    def image_size(self) -> tuple[int, int] | None:
        """The width and height of the page's image in pixels, upright; None if it is gone. See `Region.scaled`."""
        try:
            with self.page.open_image() as opened:
                turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return (opened.height, opened.width) if turned else opened.size
        except (DocumentNotFoundError, UnreadableDocumentError, InvalidOptionError):
            return None

    @cached_property
    def page_size(self) -> tuple[float, float] | None:
        """The width and height of the PDF's page in points, upright and cropped as it is shown; see `Region.scaled`.

        It is read from the file: None if that is no PDF, encrypted, gone, or changed since it was indexed.
        """
        return size_in_points(self.page)

    # ---- pictures

    def to_image(self, token: int | None = None, alpha: float = _ALPHA) -> Image.Image:
        """Draw what matches on the page: a heatmap over patches, or boxes round words; RGB, 1 megapixel at most.

        Args:
            token: Which token of the query, as an index into `tokens`; by default all that was asked.
            alpha: How much the best places are coloured, from 0 to 1.

        Raises:
            InvalidOptionError: If there is no such token, or `alpha` is not from 0 to 1.
            DocumentNotFoundError: If the image file is gone.
            UnreadableDocumentError: If it is no image.
        """
        if token is not None and (isinstance(token, bool) or not 0 <= token < len(self.tokens)):
            raise InvalidOptionError(f"The query has {len(self.tokens)} tokens, from 0 on; got token={token!r}.")
        if not 0 <= alpha <= 1:
            raise InvalidOptionError(f"alpha is from 0 to 1; got {alpha!r}.")
        image = self._image(_PICTURE_PIXELS)
        if self.grid is not None:
            warmth = self._heat(token).reshape(self.grid.rows, self.grid.columns)
            return draw_heat(image, warmth, self._winners(token), alpha)
        return draw_boxes(image, self._marked(token), alpha)

    def to_html(self) -> str:
        """Write a page to look at in a browser, with a token picker: one text, with nothing from elsewhere, no script.

        Without the page's image, places are shown on a blank sheet.
        """
        notes, image = list(self.notes), None
        try:
            image = self._image(_PICTURE_PIXELS)
        except (DocumentNotFoundError, UnreadableDocumentError, InvalidOptionError) as error:
            notes.append(str(error))
        if image is not None:
            size: tuple[float, float] = image.size
        else:
            size = (self.grid.columns, self.grid.rows) if self.grid else (1, math.sqrt(2))
        return write_html(
            query=self.query,
            title=self.title,
            score=self.score,
            notes=notes,
            page=image,
            size=size,
            tokens=self.tokens,
            layers=[self._layer(token) for token in (None, *range(len(self.tokens)))],
            regions=self.regions(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as what JSON has: places as fractions of the page, and similarities with each."""
        return {
            "query": self.query,
            "score": self.score,
            "page_id": self.page.page_id,
            "file_name": self.page.file_name,
            "page_number": self.page.page_number,
            "kind": self.kind,
            "notes": list(self.notes),
            "image_size": self.image_size,
            "page_size": self.page_size,
            "grid": None if self.grid is None else {"rows": self.grid.rows, "columns": self.grid.columns},
            "boxes": self.boxes.round(5).tolist(),
            "words": [] if self.kind == "patches" else [word.text for word in self._words],
            "tokens": [
                {
                    "text": match.text,
                    "share": match.share,
                    "is_word": match.is_word,
                    "is_clear": match.is_clear,
                    "places": list(match.places),
                    "similarities": match.similarities.astype(float).round(4).tolist(),
                }
                for match in self.tokens
            ],
            "regions": self._region_dicts(),
        }

    def note_regions(self, node: BaseNode) -> None:
        """Put the regions into a node's metadata, as `regions`, where citations find them; models are not shown them.

        Each is a mapping of `left`, `top`, `right`, `bottom` (fractions of the page, from its top left), `share`,
        `tokens` and `text`; and `points`, the four sides in points, where the page's size is known.
        """
        node.metadata["regions"] = self._region_dicts()
        for hidden in (node.excluded_llm_metadata_keys, node.excluded_embed_metadata_keys):
            if "regions" not in hidden:
                hidden.append("regions")

    # ---- inside

    def _region_dicts(self) -> list[dict[str, Any]]:
        dicts = []
        for region in self.regions():
            corners = {side: round(getattr(region, side), 5) for side in ("left", "top", "right", "bottom")}
            kept = {**corners, "share": round(region.share, 4), "tokens": list(region.tokens), "text": region.text}
            if self.page_size is not None:
                kept["points"] = [round(side, 2) for side in region.scaled(*self.page_size)]
            dicts.append(kept)
        return dicts

    @cached_property
    def _words(self) -> list[WordBox]:
        return word_boxes(node_from_page(self.page))

    @property
    def _places(self) -> Places:
        kind: Literal["patches", "words"] = "patches" if self.grid else "words"
        none = np.empty(0, dtype=np.intp)
        return Places(kind, self.boxes, none, none, self.grid)

    def _heat(self, token: int | None) -> Floats:
        return heat(self.tokens, self._places.kind, token)

    def _winners(self, token: int | None) -> list[Box]:
        """Return the patches that won for a token, or for those that were asked and stand out."""
        chosen = [token] if token is not None else range(len(self.tokens))
        asked = any(match.is_word for match in self.tokens)
        numbers = set()
        for number in chosen:
            match = self.tokens[number]
            if token is not None or (
                (match.is_word or not asked) and self._heat(number).max(initial=0) >= _OUTSTANDING
            ):
                numbers |= set(match.places)
        return [_box(self.boxes[number]) for number in sorted(numbers)]

    def _marked(self, token: int | None) -> list[tuple[Box, float]]:
        """Return the words that match, and how much; the best are drawn last."""
        warmth = self._heat(token)
        numbers = np.flatnonzero(warmth > 0)
        return [(_box(self.boxes[number]), float(warmth[number])) for number in numbers[np.argsort(warmth[numbers])]]

    def _layer(self, token: int | None) -> Layer:
        if self.grid is None:
            return Layer(boxes=self._marked(token))
        warmth = self._heat(token).reshape(self.grid.rows, self.grid.columns)
        return Layer(heat_overlay(warmth, 0.5), winners=self._winners(token))

    def _image(self, max_pixels: int | None = None) -> Image.Image:
        """Return the page's image, RGB, upright, scaled down to so many pixels."""
        from PIL import Image

        with self.page.open_image() as opened:
            limit = max_pixels or opened.width * opened.height
            scale = math.sqrt(limit / (opened.width * opened.height))
            if scale < 1:  # a JPEG is decoded at a fraction of its size
                opened.draft("RGB", fit_size(opened.width * scale, opened.height * scale, limit))
            try:
                image = to_rgb(opened)
                scale = math.sqrt(limit / (image.width * image.height))
                if scale >= 1:
                    return image
                size = fit_size(image.width * scale, image.height * scale, limit)
                # Hamming's window takes a third of the time of what embedders' images are scaled by.
                return image.resize(size, Image.Resampling.HAMMING)
            except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises over broken images
                raise UnreadableDocumentError(f"The image of {self.page} cannot be read: {error}.") from error


def explain(
    query: str | QueryBundle, hit: NodeWithScore | BaseNode, embedder: MultiVectorEmbedder, store: MilvusPageStore
) -> Explanation:
    """Say which patches or words of a page matched a query, from the vectors that are stored.

    Args:
        query: What was asked.
        hit: A page that a retriever found for it, or any other page of the store.
        embedder: The one that made the collection. Its `query_tokens`, if it has them, name the query's tokens, and its
            `page_words` say what vectors stand for that are no patches; see `MultiVectorEmbedder`.
        store: Where the page is.

    Raises:
        FingerprintMismatchError: If another embedder, or another revision of it, made the collection.
        InvalidOptionError: If the page is not in the store, or was stored anew with other content since it was found.
        StoreError: If its vectors are lost.
        QueryError: If the query is empty, or has an image.
        ModelError: If the embedder's `query_tokens` or `page_words` do not go with its vectors.
    """
    node = hit.node if isinstance(hit, NodeWithScore) else hit
    if not isinstance(node, BaseNode):
        raise InvalidOptionError(f"A hit is a NodeWithScore or a node; got {type(hit).__name__}.")
    texts = _asked(query)
    store.open(embedder.fingerprint, recommended_candidate_vectors(embedder))
    page = _stored(node, store)
    stored = store.vectors([page.page_id])
    if not stored:
        raise StoreError(f"The vectors of {page} are lost: index its file again, or run `colqwen info --check`.")
    vectors, grid = stored[0].vectors, stored[0].patch_grid
    embedded = embed_queries(embedder, texts)
    names = _names(embedder, texts, embedded)
    boxes = word_boxes(node_from_page(page))
    places, notes = None, []
    if grid is not None:
        places = patches(grid)
    elif (of_rows := page_words(embedder, page, vectors)) is not None and boxes:
        places = words(boxes, of_rows)
    query_vectors = np.concatenate(embedded)
    is_word = [name is None or _is_word(name) for name in names]
    shown = [f"token {number}" if name is None else name or NO_WORD for number, name in enumerate(names, start=1)]
    tokens = match_tokens(query_vectors, vectors, shown, is_word, places)
    kind: Literal["patches", "words", "text", "nothing"] = "nothing"
    if places is not None:
        kind, corners = places.kind, places.boxes
        if kind == "words":
            tokens = [_if_same(match, name, boxes, embedder) for match, name in zip(tokens, names, strict=True)]
    else:
        found = words(boxes, [])
        corners = found.boxes
        notes.append(_unknown_places(embedder, bool(boxes)))
        if boxes:
            kind = "text"
            asked = {plain for text in texts for word in text.split() if (plain := _plain(word))}
            tokens = [_by_text(match, name, asked, boxes) for match, name in zip(tokens, names, strict=True)]
    explanation = Explanation(" ".join(texts), page, tokens, kind, corners, grid, notes)
    if (
        isinstance(hit, NodeWithScore)
        and hit.score is not None
        and not any(
            math.isclose(hit.score, known, rel_tol=1e-3, abs_tol=1e-3)
            for known in (explanation.score, normalized(embedder, query_vectors, explanation.score))
        )
    ):
        notes.append(
            f"The hit has the score {hit.score:.4f}, and this explains {explanation.score:.4f}: the hit is of another "
            "query or embedder, or its score was changed since, as by a reranker."
        )
    return explanation


def _stored(node: BaseNode, store: MilvusPageStore) -> Page:
    """Return the page as it is stored; it has to be the one that was found."""
    pages = store.get([node.node_id])
    if not pages:
        raise InvalidOptionError(
            f"{caption(node)} ({node.node_id}) is not in collection {store.collection_name!r} of {store.uri}: it was "
            "deleted, or the hit is from another index. Ask this index again."
        )
    [page] = pages
    image, text = node.metadata.get("page_sha256"), getattr(node, "text", None)
    if image != page.metadata.get("page_sha256") or (image is None and text is not None and text != page.text):
        raise InvalidOptionError(f"{caption(node)} was stored anew, with other content, since it was found: ask again.")
    return page


def _names(
    embedder: MultiVectorEmbedder, texts: Sequence[str], embedded: Sequence[MultiVector]
) -> list[str] | list[None]:
    """Return what each row of the texts' multi-vectors stands for, or None for each."""
    names: list[str] = []
    for text, vectors in zip(texts, embedded, strict=True):
        some = query_tokens(embedder, text, vectors)
        if some is None:
            return [None] * sum(map(len, embedded))
        names += [name.strip() for name in some]
    return names


def _is_word(name: str) -> bool:
    # A piece of a letter's bytes, as tokenizers make of rare ones, is shown as the replacement character.
    return any(character.isalnum() or character == "\ufffd" for character in name)


def _unknown_places(embedder: MultiVectorEmbedder, has_words: bool) -> str:
    pooled = (embedder.fingerprint.options.get("pool_factor") or 1) != 1
    why = "are pooled" if pooled else "came without a patch grid"
    shown = (
        "what is marked are the page's words that are also the question's, which the score does not know"
        if has_words
        else "and it has no words to mark instead"
    )
    return f"The page's vectors {why}, so that it is not known where on the page they lie; {shown}."


def _if_same(
    match: TokenMatch, name: str | None, boxes: Sequence[WordBox], embedder: MultiVectorEmbedder
) -> TokenMatch:
    """Let a token match clearly, if the embedder takes it and the word that won for the same."""
    if match.is_clear or not match.places or not name:
        return match
    written = boxes[match.places[0]].text
    both = Page("", "", "", 1, f"{name} {written}")
    rows = page_words(embedder, both, None) or []
    same = any(0 in row and max(row) >= len(name.split()) for row in rows)
    return replace(match, is_clear=same)


def _by_text(match: TokenMatch, name: str | None, asked: set[str], boxes: Sequence[WordBox]) -> TokenMatch:
    """Let a token match the words of the page that are the question's word that it is, or is a piece of.

    A token without a name is taken for all of the question.
    """
    piece = _plain(name or "")
    wanted = asked if name is None else {word for word in asked if piece and piece in word}
    hits = [number for number, box in enumerate(boxes) if _plain(box.text) in wanted]
    similarities = np.zeros(len(boxes), dtype=np.float32)
    similarities[hits] = 1
    return replace(match, is_clear=bool(hits), places=hits, similarities=similarities)


def _plain(word: str) -> str:
    return "".join(character for character in word.casefold() if character.isalnum())


def _box(corners: npt.NDArray[np.float64]) -> Box:
    left, top, right, bottom = corners.tolist()
    return left, top, right, bottom


def _asked(query: str | QueryBundle) -> list[str]:
    """Return the texts of a query."""
    if isinstance(query, QueryBundle) and query.image_path is not None:
        raise QueryError("The query has an image, and explanations are of words: give the words that were asked.")
    texts = [query] if isinstance(query, str) else query.embedding_strs
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise QueryError("The query is empty: give the words that were asked.")
    return texts
