"""A question and a page that was found -> which patch or word of it matched."""

from llama_index_colqwen.explain.explanation import Explanation, explain
from llama_index_colqwen.explain.gallery import show_pages
from llama_index_colqwen.explain.regions import Region
from llama_index_colqwen.explain.similarities import TokenMatch

__all__ = ["Explanation", "Region", "TokenMatch", "explain", "show_pages"]
