"""LlamaIndex's metadata filters -> a Milvus expression that narrows, and a function of the metadata that decides.

The only place where a literal of a user's gets into an expression. Knows nothing of connections or pages.

Engines disagree about missing keys, truth values, substrings and everything negated, so an expression says only what
they agree on, and keeps a page too many rather than one too few; every page that it keeps is checked again here.

A page whose file has several names or places has them all in `file_names` and `file_paths`; a filter by `file_name` or
`file_path` finds it by any of them, and NE and NIN leave it out for any.

A page without the key, or with null, matches only NE, NIN and IS_EMPTY. Values of different kinds (a number, a text, a
truth value) are never equal and have no order. CONTAINS, ANY and ALL ask a list in the metadata; TEXT_MATCH finds a
substring.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from llama_index_colqwen.errors import InvalidOptionError
from llama_index_colqwen.store.connection import quote
from llama_index_colqwen.store.search import PageFilter

__all__ = ["any_of", "page_filter"]

_WITH_LISTS = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)
_WITH_TEXTS = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)
_ORDERS = (FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE)

_SEVERAL = {"file_name": "file_names", "file_path": "file_paths"}
_NEGATED = (FilterOperator.NE, FilterOperator.NIN)

_MAX_DEPTH = 32
_MAX_ALTERNATIVES = 64  # Milvus 2.3 takes 40 ms to parse a hundred, and 10 s for two thousand


def page_filter(filters: MetadataFilters | None) -> PageFilter | None:
    """Translate filters; None where there are none.

    Raises:
        InvalidOptionError: If they are no `MetadataFilters`, a value does not go with its operator, or they are nested
            more than 32 deep.
    """
    if filters is None:
        return None
    if not isinstance(filters, MetadataFilters):
        raise InvalidOptionError(
            "filters are MetadataFilters(filters=[MetadataFilter(key='file_name', value='report.pdf')]); got "
            f"{type(filters).__name__}."
        )
    if not filters.filters:
        return None
    _check(filters, depth=1)
    return PageFilter(_expression(filters), _matcher(filters), repr(filters))


def any_of(key: str, values: list[str]) -> PageFilter | None:
    """Return the filter for pages that have one of these texts there; None for no texts."""
    if not values:
        return None
    return page_filter(MetadataFilters(filters=[MetadataFilter(key=key, value=values, operator=FilterOperator.IN)]))


def _matcher(part: MetadataFilter | MetadataFilters) -> Callable[[Mapping[str, Any]], bool]:
    """Make the function that says whether metadata match, without Milvus."""
    if isinstance(part, MetadataFilter):
        test, key, value = _TESTS[part.operator], part.key, part.value
        if key not in _SEVERAL:
            return lambda metadata: test(metadata.get(key), value)
        several, combine = _SEVERAL[key], all if part.operator in _NEGATED else any
        return lambda metadata: combine(test(one, value) for one in metadata.get(several) or (metadata.get(key),))
    inner = [_matcher(one) for one in part.filters]
    if part.condition == FilterCondition.OR:
        return lambda metadata: any(matches(metadata) for matches in inner)
    if part.condition == FilterCondition.NOT:
        return lambda metadata: not any(matches(metadata) for matches in inner)
    return lambda metadata: all(matches(metadata) for matches in inner)


def _kind(value: object) -> type:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float
    return type(value)


def _equal(value: object, wanted: object) -> bool:
    return _kind(value) == _kind(wanted) and value == wanted


def _has(value: object, wanted: object) -> bool:
    return isinstance(value, list) and any(_equal(one, wanted) for one in value)


def _ordered(order: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda value, wanted: _kind(value) == _kind(wanted) and order(value, wanted)


# A metadata value, None if there is none, and the filter's value -> whether it matches.
_TESTS: Mapping[FilterOperator, Callable[[Any, Any], bool]] = {
    FilterOperator.EQ: _equal,
    FilterOperator.NE: lambda value, wanted: not _equal(value, wanted),
    FilterOperator.GT: _ordered(operator.gt),
    FilterOperator.GTE: _ordered(operator.ge),
    FilterOperator.LT: _ordered(operator.lt),
    FilterOperator.LTE: _ordered(operator.le),
    FilterOperator.IN: lambda value, wanted: any(_equal(value, one) for one in wanted),
    FilterOperator.NIN: lambda value, wanted: not any(_equal(value, one) for one in wanted),
    FilterOperator.CONTAINS: _has,
    FilterOperator.ANY: lambda value, wanted: any(_has(value, one) for one in wanted),
    FilterOperator.ALL: lambda value, wanted: all(_has(value, one) for one in wanted),
    FilterOperator.TEXT_MATCH: lambda value, wanted: isinstance(value, str) and wanted in value,
    FilterOperator.TEXT_MATCH_INSENSITIVE: lambda value, wanted: (
        isinstance(value, str) and wanted.casefold() in value.casefold()
    ),
    FilterOperator.IS_EMPTY: lambda value, wanted: value is None or value in ("", []),
}


def _check(part: MetadataFilter | MetadataFilters, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidOptionError(f"Filters are nested more than {_MAX_DEPTH} deep.")
    if isinstance(part, MetadataFilter):
        if part.operator != FilterOperator.IS_EMPTY:
            _check_value(part)
        return
    if not part.filters:
        raise InvalidOptionError("A group of filters is empty: leave it out.")
    for inner in part.filters:
        _check(inner, depth + 1)


def _check_value(part: MetadataFilter) -> None:
    value, name = part.value, f"{part.key!r} {part.operator.value}"
    if part.operator in _WITH_LISTS:
        if not isinstance(value, list) or not value:
            raise InvalidOptionError(f"The filter {name} takes a list with at least one value; got {value!r}.")
    elif isinstance(value, list) or value is None:
        raise InvalidOptionError(f"The filter {name} takes one number or text; got {value!r}.")
    if part.operator in _WITH_TEXTS and not isinstance(value, str):
        raise InvalidOptionError(f"The filter {name} takes a text; got {value!r}.")
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, float) and not math.isfinite(one):
            raise InvalidOptionError(f"The filter {name} takes finite numbers; got {one!r}.")
        if isinstance(one, int) and not -(2**63) <= one < 2**63:
            raise InvalidOptionError(f"The filter {name} takes numbers of 64 bits; got {one!r}.")


def _expression(part: MetadataFilter | MetadataFilters) -> str:
    """Write an expression that is true of all that match; empty if there is none to be trusted."""
    if isinstance(part, MetadataFilters):
        inner = [_expression(inner) for inner in part.filters]
        if part.condition == FilterCondition.NOT or (part.condition == FilterCondition.OR and not all(inner)):
            return ""
        return _joined(" or " if part.condition == FilterCondition.OR else " and ", [text for text in inner if text])
    field = f"metadata[{quote(part.key)}]"
    value, operation = part.value, part.operator
    if part.key in _SEVERAL:
        return _of_several(part)
    if operation == FilterOperator.EQ or operation in _ORDERS:
        return f"{field} {operation.value} {_literal(value)}"
    if operation == FilterOperator.CONTAINS:
        return _contains(field, value)
    if isinstance(value, list) and len(value) <= _MAX_ALTERNATIVES:
        if operation == FilterOperator.IN:
            # Milvus Lite has no `in` for metadata, and servers have it for lists of one kind only.
            return _joined(" or ", [f"{field} == {_literal(one)}" for one in value])
        if operation == FilterOperator.ALL:
            return _joined(" and ", [text for one in value if (text := _contains(field, one))])
        if operation == FilterOperator.ANY and all(_contains(field, one) for one in value):
            return _joined(" or ", [_contains(field, one) for one in value])
    return ""


def _of_several(part: MetadataFilter) -> str:
    """Write that one of a page's file names or paths is one of these; nothing else is to be trusted."""
    values = part.value if part.operator == FilterOperator.IN else [part.value]
    texts = [one for one in values if isinstance(one, str)] if isinstance(values, list) else []
    if part.operator not in (FilterOperator.EQ, FilterOperator.IN) or values != texts or len(texts) > _MAX_ALTERNATIVES:
        return ""
    one, all_of_them = f"metadata[{quote(part.key)}]", f"metadata[{quote(_SEVERAL[part.key])}]"
    return _joined(" or ", [f"({one} == {quote(text)} or {_contains(all_of_them, text)})" for text in texts])


def _contains(field: str, value: object) -> str:
    """Write that a list contains a value; servers do not find 1 in a list with 1.0, nor the other way round."""
    alternatives = {_literal(value)}
    if isinstance(value, (int, float)):
        if math.copysign(1, value) < 0:
            return ""  # Milvus Lite takes no negative numbers there
        if float(value).is_integer():
            alternatives |= {_literal(int(value)), _literal(float(value))}
    return _joined(" or ", [f"json_contains({field}, {one})" for one in sorted(alternatives)])


def _joined(word: str, expressions: Sequence[str]) -> str:
    return f"({word.join(expressions)})" if len(expressions) > 1 else "".join(expressions)


def _literal(value: object) -> str:
    return quote(value) if isinstance(value, str) else repr(value)
