"""The words of a page -> unit vectors: word matching above BM25's level with no weights, no GPU and no network.

It is lexical. It matches words, their inflections and parts, and numbers, of the text layer or of OCR; it does not see
figures and does not understand paraphrase. Knows nothing of images, Milvus or LlamaIndex.

One vector per unique word of a page, such that MaxSim of a query is close to the page's BM25F score:

- A word's direction is hashed, from its stem and the 3- to 5-grams of its stem: the same word has inner product 1,
  words with a common part something between, unrelated words about 0 (standard deviation 1 / sqrt(254)).
- Its length is, on a page, BM25's saturated term frequency and, in a query, its static inverse document frequency.
- What tells what a page is about counts more: the page's first words, captions, the title of its section in the
  document's outline, and the name of its file, which may have words that are not on the page.
- Two more dimensions, one zero on pages and one zero in queries, fill every vector up to norm 1, so that stores and
  MaxSim need to know nothing of this. They add nothing to any score.

Sources: BM25 and BM25F after Robertson & Zaragoza 2009, section 3; word frequencies from wordfreq; hashed n-grams after
Bojanowski et al. 2017 ("Enriching Word Vectors with Subword Information"), with random signs for learned vectors.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import regex

from llama_index_colqwen.errors import InvalidOptionError, QueryError
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.pages import Page, files_of

__all__ = ["LexicalEmbedder", "WordWeights"]

# With 128 dims, chance likeness of unrelated words moves NDCG@5 by .005 from one hash function to the next, and costs
# .007; 512 gain nothing that can be told from noise.
_DIM = 256
_HASHED = _DIM - 2
_PAGE_SLACK, _QUERY_SLACK = _DIM - 2, _DIM - 1

_MAX_QUERY_WORDS = 256

_USUAL_WORDS = 220  # of a page, stop words left out

# Static inverse document frequency: as if among this many usual pages of general text. Words that stand on more than
# about half of them are stop words.
_IDF_PAGES = 1000
_MIN_IDF = 0.7
_UNKNOWN_FREQUENCY = 1e-8
_NUMBER_FREQUENCY = 1e-5  # there are many numbers on every page: each is less telling than a rare word

# Below 1, so that every query vector has slack for a blank page to point away from.
_MAX_QUERY_WEIGHT = 0.95

# How much a word's own hash weighs beside that of its n-grams; between 1 and 4 it makes no measurable difference.
_WHOLE_WORD_WEIGHT = 1.0

_CAPTION = regex.compile(r"(?im)^[^\w\n]*(?:figure|fig|table|chart|exhibit|appendix|graph)\b.*$")

# Snowball's stemmers, by ISO 639-1 code.
_STEMMERS = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english",
    "es": "spanish", "fa": "persian", "fi": "finnish", "fr": "french", "hi": "hindi", "hu": "hungarian",
    "id": "indonesian", "it": "italian", "lt": "lithuanian", "nb": "norwegian", "nl": "dutch", "pl": "polish",
    "pt": "portuguese", "ro": "romanian", "ru": "russian", "sv": "swedish", "ta": "tamil", "tr": "turkish",
}  # fmt: skip

# Scripts written without spaces (or, Korean, with particles attached): their runs become overlapping pairs.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# ASCII letters first, and sets without look-ahead: three times as fast.
_LETTERS = rf"(?:[a-z]++|[[\p{{L}}\p{{M}}]--[{_UNSPACED}]])+(?:'\p{{L}}+)*"
_WORD = regex.compile(
    rf"(?V1){_LETTERS}(?:-{_LETTERS})*"
    rf"|\p{{N}}+(?:[.,]\p{{N}}+)*"
    rf"|(?P<unspaced>(?:(?=[\p{{L}}\p{{M}}])[{_UNSPACED}]\p{{M}}*)+)"
)
_NAME_JOINTS = regex.compile(r"[-_.]+")
_THOUSANDS = regex.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_ACCENTED = regex.compile(r"([\p{Latin}\p{Greek}\p{Cyrillic}])\p{M}+")
# Chinese and Japanese end lines anywhere, one character a line where they run downwards; titles are spaced out.
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_CJK_PAIR = regex.compile(rf"{_CJK}{{2}}")
_WRAPPED_RUN = regex.compile(rf"(?<={_CJK})\n(?={_CJK})")
_TORN_RUN = regex.compile(rf"(?<!\S){_CJK}(?:[^\S\n]+{_CJK}){{2,}}(?!\S)")


@dataclass(frozen=True)
class WordWeights:
    """How a page's words are counted; `benchmarks/quality.py --cv` measures others.

    Attributes:
        first_words: As how many more occurrences each of the page's first words counts.
        number_of_first: How many words these are, stop words left out.
        captions: The same for the words of lines that begin as captions do.
        section: The same for the words of the section's title.
        file_name: The same for the words of the file's name.
        saturation: BM25's k1. Length normalisation is full (b = 1): long pages also have more words that are similar
            by chance.
    """

    first_words: float = 2.0
    number_of_first: int = 20
    captions: float = 1.0
    section: float = 2.0
    file_name: float = 2.0
    saturation: float = 1.2


class LexicalEmbedder:
    """Embed words, offline: the default where no model can run.

    On 671 pages of reports, papers and manuals (168 questions) it ranks better than BM25 over the same text. Languages
    without spaces are matched by pairs of characters, which finds quoted terms but knows no words.

    Args:
        language: ISO 639-1 code: whose word frequencies weigh query words, and which stemmer joins inflections. Words
            of other languages still match, each with the weight of a rare word.
    """

    candidate_vectors: Literal["all"] = "all"
    """Words cannot be pooled: the mean of two words' vectors is like neither."""

    sees_images = False

    weights = WordWeights()
    """Others are for measuring only: the fingerprint does not tell them from these."""

    def __init__(self, language: str = "en") -> None:
        """See the class."""
        from wordfreq import available_languages

        if language not in available_languages("small"):
            known = ", ".join(sorted(available_languages("small")))
            raise InvalidOptionError(f"There are no word frequencies for language {language!r}; known are {known}.")
        self.language = language

    @property
    def dim(self) -> int:
        """Length of each vector: 256."""
        return _DIM

    @property
    def fingerprint(self) -> EmbedderFingerprint:
        """Changes whenever the same words would become other vectors."""
        return EmbedderFingerprint("lexical", "2", _DIM, {"language": self.language})

    def page_context(self, page: Page) -> str:
        """Return what is read of a page besides its text: the names of its files, and its section's title."""
        return "\n".join([*_file_names(page), _section(page)])

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        """Embed the pages' text: shape (unique words, 256); a page without words has one vector, far from any query.

        Of a page in several files, all their names count; a word that several have counts once.
        """
        stem = self._stemmer()
        return [self._embed_page(page, stem) for page in pages]

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        """Embed queries: shape (unique words, 256), stop words left out where others are left.

        Raises:
            QueryError: If a query has no letters or digits.
        """
        if wrong := [query for query in queries if not isinstance(query, str)]:
            raise QueryError(f"A query is a text; got {type(wrong[0]).__name__}.")
        stem = self._stemmer()
        return [self._embed_query(query, stem) for query in queries]

    def highest_score(self, query: MultiVector) -> float:
        """Return what a page would score that had every word of a query countless times: the sum of their weights."""
        return float(np.linalg.norm(query[:, :_HASHED], axis=1).sum())

    def query_tokens(self, query: str) -> list[str]:
        """Return the word that each row of a query's multi-vector stands for; of inflections, the first."""
        stem = self._stemmer()
        first: dict[str, str] = {}
        for word in self._query_words(query):
            first.setdefault(stem(word), word)
        return list(first.values())

    def page_words(self, page: Page) -> list[list[int]]:
        """Return the words that each row of a page's multi-vector stands for, as indexes into `page.text.split()`."""
        stem = self._stemmer()
        found: dict[str, list[int]] = {}
        written = page.text.split()
        for number, word in enumerate(written):
            for found_stem in dict.fromkeys(self._stems(word, stem)):
                found.setdefault(found_stem, []).append(number)
        # Spaces and line ends that `_words` takes out: their pair of characters is in two of the text's words.
        for number, (word, following) in enumerate(pairwise(written)):
            if _CJK_PAIR.fullmatch(pair := word[-1] + following[0]):
                found.setdefault(pair, []).extend([number, number + 1])
        # Words of the file's name and of the section's title need not be among the page's own.
        return [sorted(set(found.get(word, ()))) for word in self._counts(page, stem)[0]] or [[]]

    def count_words(self, pages: Iterable[Page]) -> Iterator[tuple[dict[str, float], int]]:
        """Count the stems of pages without embedding them, for BM25: how often each counts, and the text's length."""
        stem = cache(self._stemmer())
        return (self._counts(page, stem) for page in pages)

    def query_words(self, query: str) -> list[str]:
        """Return the stems of a query, each once, stop words left out where others are left."""
        stem = self._stemmer()
        return list(dict.fromkeys(stem(word) for word in self._query_words(query)))

    def _counts(self, page: Page, stem: Callable[[str], str]) -> tuple[dict[str, float], int]:
        """Return the stems that a page's vectors stand for, in order, how often each counts, and the text's length."""
        body = list(self._stems(page.text, stem))
        counts: dict[str, float] = dict(Counter(body))
        if not body:
            return counts, 0
        named: Counter[str] = Counter()
        for name in _file_names(page):
            named |= Counter(self._stems(name, stem))
        for words, weight in (
            (body[: self.weights.number_of_first], self.weights.first_words),
            (self._stems("\n".join(_CAPTION.findall(page.text)), stem), self.weights.captions),
            (self._stems(_section(page), stem), self.weights.section),
            (named.elements(), self.weights.file_name),
        ):
            for word in words if weight else ():
                counts[word] = counts.get(word, 0.0) + weight
        return counts, len(body)

    def _stems(self, text: str, stem: Callable[[str], str]) -> Iterable[str]:
        return (stem(word) for word in _words(text) if self._idf(word) > _MIN_IDF)

    def _query_words(self, query: str) -> list[str]:
        words = list(_words(query))[:_MAX_QUERY_WORDS]
        return [word for word in words if self._idf(word) > _MIN_IDF] or words

    def _embed_page(self, page: Page, stem: Callable[[str], str]) -> MultiVector:
        counts, length = self._counts(page, stem)
        if not counts:
            blank = np.zeros((1, _DIM), dtype=np.float32)
            # Against every query's slack: below any page with words, even one where nothing matches.
            blank[0, _QUERY_SLACK] = -1.0
            return blank
        frequency = np.array(list(counts.values()), dtype=np.float64)
        # The length is the text's alone: a long file name makes no page longer.
        weights = frequency / (frequency + self.weights.saturation * length / _USUAL_WORDS)
        return _with_slack(counts, weights, _PAGE_SLACK)

    def _embed_query(self, query: str, stem: Callable[[str], str]) -> MultiVector:
        words = list(_words(query))
        if not words:
            raise QueryError(f"The query has no letters or digits to match: {query[:80]!r}.")
        if len(words) > _MAX_QUERY_WORDS:
            warnings.warn(
                f"The query has {len(words)} words; the first {_MAX_QUERY_WORDS} are used.", UserWarning, stacklevel=4
            )
        # Inflections of one word in a query count once, with the weight of the rarest.
        idf: dict[str, float] = {}
        for word in self._query_words(query):
            idf[stem(word)] = max(self._idf(word), idf.get(stem(word), 0.0))
        weights = np.array(list(idf.values())) * (_MAX_QUERY_WEIGHT / _idf_of(_UNKNOWN_FREQUENCY))
        return _with_slack(idf, weights, _QUERY_SLACK)

    def _idf(self, word: str) -> float:
        rarest = _NUMBER_FREQUENCY if word[0].isdigit() else _UNKNOWN_FREQUENCY
        return _idf_of(_frequencies(self.language).get(word, rarest))

    def _stemmer(self) -> Callable[[str], str]:
        if self.language not in _STEMMERS:
            return str
        import Stemmer

        # A new one a call: Snowball's stemmers are not thread-safe.
        stem: Callable[[str], str] = Stemmer.Stemmer(_STEMMERS[self.language]).stemWord
        return stem


def _file_names(page: Page) -> list[str]:
    """Return the names of the files that a page is in, as words: no suffix, and spaces for what joins words there."""
    names = {str(file.name) for file in files_of(page.metadata) if file.name} or {page.file_name} - {page.page_id}
    return sorted({_NAME_JOINTS.sub(" ", name.rpartition(".")[0] or name) for name in names})


def _section(page: Page) -> str:
    section = page.metadata.get("section")
    return section if isinstance(section, str) else ""


def _words(text: str) -> Iterable[str]:
    """Split text into words: numbers whole (`1,234.5`), no possessive endings, unspaced scripts in pairs.

    Of a word with hyphens come its parts, and then all in one: `e-mail` is found by `email` too.
    """
    normal = unicodedata.normalize("NFKC", text).casefold()
    if not normal.isascii():
        # Soft hyphens say where a word may be parted.
        normal = normal.replace("\u2019", "'").replace("\u2010", "-").replace("\u00ad", "")
        normal = _TORN_RUN.sub(lambda run: "".join(run.group().split()), _WRAPPED_RUN.sub("", normal))
    for match in _WORD.finditer(normal):
        word = match.group()
        if match.lastgroup == "unspaced" and len(word) > 1:
            yield from (word[start : start + 2] for start in range(len(word) - 1))
            continue
        parts = [part.removesuffix("'s") for part in word.split("-")]
        yield from parts
        if len(parts) > 1:
            yield "".join(parts)


@lru_cache(maxsize=8)
def _frequencies(language: str) -> dict[str, float]:
    from wordfreq import get_frequency_dict

    frequencies: dict[str, float] = get_frequency_dict(language, "small")
    return frequencies


@lru_cache(maxsize=65_536)
def _idf_of(frequency: float) -> float:
    """Turn the share of a word among all words into its inverse document frequency over usual pages."""
    holding = _IDF_PAGES * (1 - (1 - frequency) ** _USUAL_WORDS)
    return math.log(1 + (_IDF_PAGES - holding + 0.5) / (holding + 0.5))


def _with_slack(words: Iterable[str], weights: npt.NDArray[np.floating], slack: int) -> MultiVector:
    """Scale the words' directions, and fill up to norm 1 in the slack dimension."""
    vectors = np.zeros((len(weights), _DIM), dtype=np.float32)
    vectors[:, :_HASHED] = np.stack([_direction(word) for word in words]) * weights[:, None]
    vectors[:, slack] = np.sqrt(1 - weights**2)
    return vectors


@lru_cache(maxsize=50_000)
def _direction(word: str) -> npt.NDArray[np.floating]:
    """Hash a word into a unit vector, shape (254,): the same on every machine and in every version of numpy."""
    plain = _plain(word)
    bounded = f"<{plain}>"
    grams = sorted({bounded[start : start + size] for size in (3, 4, 5) for start in range(len(bounded) - size + 1)})
    # Half of the whole word's part is its plain form's: `café` and `cafe` have inner product .85.
    direction = _WHOLE_WORD_WEIGHT * _unit(np.sum([_signs("word " + form) for form in {word, plain}], axis=0))
    if grams:
        direction = direction + _unit(np.sum([_signs("gram " + gram) for gram in grams], axis=0))
    return _unit(direction).astype(np.float32)


def _plain(word: str) -> str:
    """Return a word without accents, a number without thousands separators."""
    if _THOUSANDS.fullmatch(word):
        return word.replace(",", "")
    if word.isascii():
        return word
    return unicodedata.normalize("NFC", _ACCENTED.sub(r"\1", unicodedata.normalize("NFD", word)))


def _signs(feature: str) -> npt.NDArray[np.floating]:
    digest = hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=_DIM // 8).digest()
    return np.unpackbits(np.frombuffer(digest, np.uint8))[:_HASHED] * 2.0 - 1.0


def _unit(vector: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
