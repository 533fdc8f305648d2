"""What a query matches on a page -> one HTML file to look at, with nothing from elsewhere and no script.

The token picker is a group of radio buttons, which keyboards and screen readers know; CSS shows the layer of the one
that is chosen. All texts are escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from llama_index_colqwen.explain.picture import word_colour
from llama_index_colqwen.explain.regions import Region
from llama_index_colqwen.explain.similarities import NO_WORD, Box, TokenMatch

__all__ = ["Layer", "data_uri", "write_html"]


@dataclass(frozen=True)
class Layer:
    """What is laid over the page for a token, or for the whole query.

    Attributes:
        heat: A picture that is scaled to the page.
        boxes: Words, and how much they match, from 0 to 1.
        winners: Patches that won.
    """

    heat: Image.Image | None = None
    boxes: Sequence[tuple[Box, float]] = ()
    winners: Sequence[Box] = ()


def data_uri(image: Image.Image, kind: str) -> str:
    """Return an image as an address that holds it; `kind` is "jpeg" or "png"."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def write_html(
    *,
    query: str,
    title: str,
    score: float,
    notes: Sequence[str],
    page: Image.Image | None,
    size: tuple[float, float],
    tokens: Sequence[TokenMatch],
    layers: Sequence[Layer],
    regions: Sequence[Region],
) -> str:
    """Write the file.

    Args:
        query: What was asked.
        title: Names the page.
        score: Of the page.
        notes: What else is to be known.
        page: Its image; None for a blank sheet.
        size: Its width and height, in any unit.
        tokens: What they match.
        layers: For the whole query, and then for each token.
        regions: The rectangles that carry most of the score.
    """
    chips = [_chip(0, "whole question", "", 1.0, checked=True)]
    most = max((match.share for match in tokens), default=0.0)
    for number, match in enumerate(tokens, start=1):
        if match.text == NO_WORD:
            continue  # a model's padding, a dozen of them; they are in the table
        dim = not (match.is_word and match.is_clear)
        width = max(match.share, 0.0) / most if most > 0 else 0.0
        chips.append(_chip(number, match.text, f"{match.share:.3f}", width, dim=dim))
    no_words = [match.share for match in tokens if match.text == NO_WORD]
    if no_words:
        notes = [
            *notes,
            f"{len(no_words)} tokens that are no words, such as padding, give {sum(no_words):.3f} of the score.",
        ]
    chosen = [number for number in range(len(layers)) if number == 0 or tokens[number - 1].text != NO_WORD]
    shown = [f".colqwen-page:has(#t{number}:checked) .o{number}{{display:block}}" for number in chosen]
    picture = (
        f'<img class="page" src="{data_uri(page, "jpeg")}" alt="The page">'
        if page
        else '<div class="page blank"></div>'
    )
    overlays = "".join(_overlay(number, layers[number]) for number in chosen)
    listed = "".join(_region(number, region) for number, region in enumerate(regions, start=1))
    said = "".join(f"<p class=note>{escape(note)}</p>" for note in notes)
    rows = "".join(f"<tr><td>{escape(match.text)}<td>{match.share:.4f}<td>{_says(match)}" for match in tokens)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(query)} - {escape(title)}</title>
<style>{_STYLE}{"".join(shown)}</style>
<main class="colqwen-page">
<header><h1>{escape(query)}</h1><p>{escape(title)} <span class="score">score {score:.3f}</span></p>{said}</header>
<div class="beside">
<div class="side">
<fieldset><legend>Show what matches</legend><div class="chips">{"".join(chips)}</div></fieldset>
{f"<section><h2>Regions</h2><ol>{listed}</ol></section>" if listed else ""}
<details><summary>All tokens</summary>
<table><thead><tr><th scope="col">token<th scope="col">share<th scope="col">matches<tbody>{rows}
</table></details>
</div>
<figure style="aspect-ratio:{size[0]:g}/{size[1]:g}">{picture}{overlays}</figure>
</div>
</main>
</html>
"""


def _chip(number: int, text: str, share: str, width: float, *, checked: bool = False, dim: bool = False) -> str:
    bar = f'<i style="width:{100 * width:.0f}%"></i>' if share else ""
    return (
        f'<label{" class=dim" * dim}><input type="radio" name="token" id="t{number}"{" checked" * checked}>'
        f"<span>{escape(text)}{f' <b>{share}</b>' if share else ''}{bar}</span></label>"
    )


def _overlay(number: int, layer: Layer) -> str:
    parts = []
    if layer.heat is not None:
        parts.append(f'<img src="{data_uri(layer.heat, "png")}" alt="">')
    parts += [_rectangle(box, f"background:rgb{word_colour(value)}") for box, value in layer.boxes]
    parts += [_rectangle(box, "") for box in layer.winners]
    return f'<div class="layer o{number}" aria-hidden="true">{"".join(parts)}</div>'


def _rectangle(box: Box, style: str) -> str:
    left, top, right, bottom = (100 * side for side in box)
    place = f"left:{left:.2f}%;top:{top:.2f}%;width:{right - left:.2f}%;height:{bottom - top:.2f}%"
    return f'<u style="{place}">{f"<s style={chr(34)}{style}{chr(34)}></s>" if style else ""}</u>'


def _region(number: int, region: Region) -> str:
    words = region.text if len(region.text) <= 240 else region.text[:240].rsplit(" ", 1)[0] + " ..."
    text = f"<q>{escape(words)}</q>" if words else ""
    place = f"{100 * region.left:.0f} to {100 * region.right:.0f} % from the left, "
    place += f"{100 * region.top:.0f} to {100 * region.bottom:.0f} % from the top"
    tokens = escape(", ".join(dict.fromkeys(region.tokens)))
    return f"<li><b>{100 * region.share:.0f} %</b> {tokens} {text}<small>{place}</small>"


def _says(match: TokenMatch) -> str:
    if not match.places:
        return "nothing that lies on the page"
    if not match.is_clear:
        return "nothing clearly"
    return "" if match.is_word else "not asked for"


_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1a1a24;--soft:#5a5a68;--line:#c9c9d4;--chip:#f1f1f6;--bar:#21908d;
--chosen:#3b1a5a;--on-chosen:#fff}
@media(prefers-color-scheme:dark){:root{--ground:#15151c;--ink:#ededf2;--soft:#a9a9b8;--line:#44444f;--chip:#24242e;
--bar:#5cc863;--chosen:#fde725;--on-chosen:#15151c}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:16px}
h1{font-size:1.4rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1rem;margin:16px 0 4px}
header p{margin:4px 0;color:var(--soft);overflow-wrap:anywhere}
.score{white-space:nowrap;margin-left:8px}
header p.note{border-left:4px solid var(--bar);padding-left:8px;color:var(--ink)}
.beside{display:flex;gap:24px;align-items:flex-start;margin-top:12px}
.side{flex:1 1 340px;min-width:0}
figure{flex:0 1 760px;min-width:0;width:100%;margin:0;position:relative;border:1px solid var(--line)}
.page{display:block;width:100%;height:100%}
.blank{background:#fff}
fieldset{border:0;margin:0;padding:0;min-width:0}
legend{font-weight:600;padding:0;margin-bottom:6px}
.chips{display:flex;flex-wrap:wrap;gap:6px}
label{position:relative;cursor:pointer;max-width:100%}
label input{position:absolute;opacity:0;width:100%;height:100%;margin:0;cursor:pointer}
label span{display:block;position:relative;overflow:hidden;padding:3px 9px 6px;border:1px solid var(--line);
border-radius:6px;background:var(--chip);overflow-wrap:anywhere}
label b{font-weight:400;font-size:.8em;color:var(--soft)}
label i{position:absolute;left:0;bottom:0;height:3px;background:var(--bar)}
label.dim span{border-style:dashed;background:none;color:var(--soft)}
label input:checked+span{background:var(--chosen);border-color:var(--chosen);color:var(--on-chosen)}
label input:checked+span b{color:inherit}
label input:focus-visible+span{outline:3px solid var(--bar);outline-offset:2px}
.layer{display:none;position:absolute;inset:0}
.layer img{width:100%;height:100%;display:block}
.layer u{position:absolute;outline:1.5px solid #440154;box-shadow:inset 0 0 0 1px #fde725;border-radius:1px;
text-decoration:none}
.layer s{position:absolute;inset:0;mix-blend-mode:multiply;opacity:.7;text-decoration:none}
ol{margin:0;padding-left:22px}
li{margin:6px 0;overflow-wrap:anywhere}
q{display:block}
small{display:block;color:var(--soft)}
details{margin-top:16px}
summary{cursor:pointer;font-weight:600}
table{border-collapse:collapse;margin-top:6px;width:100%}
th,td{text-align:left;padding:2px 8px 2px 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:anywhere}
td:nth-child(2){font-variant-numeric:tabular-nums}
@media(max-width:760px){.beside{flex-direction:column}.side,figure{flex:none;width:100%}main{padding:12px}}
"""
