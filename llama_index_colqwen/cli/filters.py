"""`--file` and `--filter` -> LlamaIndex's metadata filters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llama_index_colqwen.errors import InvalidOptionError

if TYPE_CHECKING:
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

__all__ = ["choose_pages"]

_SIGNS = ("==", "!=", ">=", "<=", "=", ">", "<")
_WORDS = ("in", "nin", "contains", "any", "all", "text_match", "text_match_insensitive", "is_empty")
_CONDITION = re.compile(
    rf"\s*(?P<key>[^=!<>]+?)\s*(?:(?P<sign>{'|'.join(_SIGNS)})|\s(?P<word>{'|'.join(_WORDS)})(?=\s|$))\s*(?P<value>.*?)\s*",
    re.DOTALL,
)
# What asks for one value, and what asks the same for any of several: a number may be meant as a text.
_OF_ONE_VALUE = {"==": "in", "=": "in", "!=": "nin", "contains": "any"}
_ORDERS = (">", ">=", "<", "<=")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE)


def choose_pages(files: Sequence[str] | None, conditions: Sequence[str] | None) -> MetadataFilters | None:
    """Make the filters that keep pages of any of these files for which all conditions hold; None keeps all.

    Args:
        files: Names of files.
        conditions: Each a key, an operator of the store's and a value, such as `page_number>=3`. `in`, `nin`, `any` and
            `all` take several values with commas between. A number is looked for as a number and as a text: page
            labels are texts.

    Raises:
        InvalidOptionError: If a condition is none.
    """
    from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

    parts: list[MetadataFilter | MetadataFilters] = []
    if files:
        parts.append(MetadataFilter(key="file_name", value=list(files), operator=FilterOperator.IN))
    for condition in conditions or ():
        match = _CONDITION.fullmatch(condition)
        value = match["value"] if match else ""
        if match is None or (match["word"] == "is_empty") == bool(value):
            raise InvalidOptionError(
                f"A filter is a key, an operator ({' '.join((*_SIGNS, *_WORDS))}) and a value, such as "
                f"'page_number>=3' or 'author is_empty'; got {condition!r}."
            )
        parts.append(_part(match["key"], match["sign"] or match["word"], value))
    return MetadataFilters(filters=parts) if parts else None


def _part(key: str, operator: str, value: str) -> MetadataFilter | MetadataFilters:
    from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

    def one(operator: str, value: str | float | list[str] | list[int | float] | None) -> MetadataFilter:
        return MetadataFilter(key=key, value=value, operator=FilterOperator(operator))

    def any_of(operator: str, values: list[str]) -> MetadataFilters:
        numbers = [_number(value) for value in values if _NUMBER.fullmatch(value)]
        meant = [one(operator, values), *(one(operator, [number]) for number in numbers)]
        return MetadataFilters(
            filters=list(meant), condition=FilterCondition.AND if operator == "nin" else FilterCondition.OR
        )

    several = [part for part in map(str.strip, value.split(",")) if part] or [value]
    if operator in _OF_ONE_VALUE:
        return any_of(_OF_ONE_VALUE[operator], [value])
    if operator in ("in", "nin", "any"):
        return any_of(operator, several)
    if operator == "all":
        return MetadataFilters(filters=[any_of("any", [part]) for part in several])
    if operator == "is_empty":
        return one(operator, None)
    is_number = operator in _ORDERS and _NUMBER.fullmatch(value)
    return one(operator, _number(value) if is_number else value)


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("+-").isdecimal() else float(text)
