"""A question and a page's text -> the few words around what they share, and where in them that stands.

Knows nothing of embedders: a page that a visual model found may share no word with the question.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import regex

__all__ = ["Snippet", "snippet"]

_BEFORE = 40  # characters that are shown before the first of the words

_STOP_WORD_FREQUENCY = 0.002  # "which", "in" and "not" are above it
_UNKNOWN_FREQUENCY = 1e-8

# Scripts without spaces have words in pairs of characters, as `LexicalEmbedder` has them.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_WORD = regex.compile(
    rf"(?P<unspaced>(?:{_UNSPACED}\p{{M}}*){{2,}})|\p{{N}}+(?:[.,]\p{{N}}+)*|(?:(?!{_UNSPACED})[\p{{L}}\p{{M}}])+"
)


@dataclass(frozen=True)
class Snippet:
    """A piece of a page's text, in one line.

    Attributes:
        text: The piece, with "..." where the text goes on.
        matches: Where in it the question's words stand: start and end.
    """

    text: str
    matches: tuple[tuple[int, int], ...] = ()

    @property
    def words(self) -> list[str]:
        """The matched words as they are written there, each once."""
        return list(dict.fromkeys(self.text[start:end] for start, end in self.matches))


def snippet(question: str, text: str, language: str = "en", max_characters: int = 160) -> Snippet:
    """Choose the piece of a text with the most, and the rarest, of a question's words, or of their inflections.

    Args:
        question: Stop words count only where there are no others.
        text: A page's.
        language: ISO 639-1 code: whose stop words and inflections.
        max_characters: Of the piece, without the "..." at its ends; over 40.

    Returns:
        The text's beginning, without matches, if they share no word; an empty text's is empty.
    """
    line = " ".join(text.split())
    stem = _stemmer(language)
    wanted = _wanted(question, stem, language)
    found = [(start, end, stem(word)) for start, end, word in _words(line) if stem(word) in wanted]

    def weight(at: int) -> float:
        return sum(
            wanted[one] for one in {one for start, _, one in found if 0 <= start - at < max_characters - _BEFORE}
        )

    best = max((start for start, _, _ in found), key=weight, default=0)  # of equal ones, the first
    start = max(0, min(best - _BEFORE, len(line) - max_characters))
    end = min(start + max_characters, len(line))
    # Words are whole, where there are spaces.
    start = line.find(" ", start - 1, best) + 1 or start if start else 0
    end = max(line.rfind(" ", end - _BEFORE, end + 1), 0) or end if end < len(line) else end
    before, after = "... " if start else "", " ..." if end < len(line) else ""
    shift = len(before) - start
    matches = [(one + shift, other + shift) for one, other, _ in found if start <= one and other <= end]
    return Snippet(f"{before}{line[start:end]}{after}", tuple(_joined(matches)))


def _wanted(question: str, stem: Callable[[str], str], language: str) -> Mapping[str, float]:
    """Return the stems of a question's words, and how much each counts."""
    from wordfreq import get_frequency_dict

    known = get_frequency_dict(language, "small")
    frequency = {word: known.get(word, _UNKNOWN_FREQUENCY) for _, _, word in _words(question)}
    telling = {word: value for word, value in frequency.items() if value < _STOP_WORD_FREQUENCY} or frequency
    return {stem(word): -math.log10(value) for word, value in telling.items()}


def _words(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield where words start and end, and the words in small letters."""
    for match in _WORD.finditer(text):
        start, end = match.span()
        if match.lastgroup == "unspaced":
            for at in range(start, end - 1):
                yield at, at + 2, text[at : at + 2]
        else:
            yield start, end, unicodedata.normalize("NFKC", match.group()).casefold()


def _stemmer(language: str) -> Callable[[str], str]:
    import Stemmer

    try:
        stem: Callable[[str], str] = Stemmer.Stemmer(language).stemWord
    except KeyError:
        return str
    return stem


def _joined(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join spans that overlap."""
    held: tuple[int, int] | None = None
    for start, end in spans:
        if held and start < held[1]:
            held = held[0], end
            continue
        if held:
            yield held
        held = start, end
    if held:
        yield held
