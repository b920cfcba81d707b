"""Regular expressions out of an adapter's configuration: hostile input, whose time is bounded.

They mean what Python's `re` makes of them, as in PEFT, but are matched by an automaton in linear time. Those
that no automaton serves (look-around, references) are left to `re` while backtracking cannot get far.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from pydantic_core import SchemaError, SchemaValidator, core_schema

_MAX_CHARS = 2000
_MAX_BACKTRACKING_REPEATS = 3
"""A module path has some 60 characters: three repetitions try at most 60^3 / 6 ways, about a millisecond."""

_ESCAPED = re.compile(r"\\.")
_CLASS = re.compile(r"\[\^?\]?[^\]]*\]")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPEAT = re.compile(r"[*+{]")
_POSSESSIVE = re.compile(r"[*+?}]\+")
_SET_OPERATION = re.compile(r"\[|&&|--|~~")


class PatternError(ValueError):
    """A regular expression is none, or could take too long."""


def fullmatch(pattern: str, text: str) -> bool:
    """Tell whether a pattern matches a whole text; raises PatternError for one that is not served."""
    return _compile(pattern)(text)


def check(pattern: str) -> None:
    """Raise PatternError unless `fullmatch` serves this pattern."""
    _compile(pattern)


@lru_cache(maxsize=8192)  # more than one configuration may hold, or each is compiled for every module
def _compile(pattern: str) -> Callable[[str], bool]:
    if len(pattern) > _MAX_CHARS:
        raise PatternError(f"it has {len(pattern)} characters, at most {_MAX_CHARS} are read")
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(f"it is not a regular expression ({error})") from error
    return _automaton(pattern) or _bounded(pattern, compiled)


def _automaton(pattern: str) -> Callable[[str], bool] | None:
    """Return a matcher by Rust's regex, which never backtracks; None if it knows no such pattern."""
    plain = _ESCAPED.sub("x", pattern)
    in_classes = (found[1:-1].lstrip("^") for found in _CLASS.findall(plain))
    if _POSSESSIVE.search(_CLASS.sub("x", plain)) or any(map(_SET_OPERATION.search, in_classes)):
        return None  # both know these, each in its own way
    schema = core_schema.str_schema(pattern=f"^(?:{pattern})$", regex_engine="rust-regex")
    try:
        return SchemaValidator(schema).isinstance_python
    except SchemaError:
        return None


def _bounded(pattern: str, compiled: re.Pattern[str]) -> Callable[[str], bool]:
    """Return a matcher by `re` for a pattern whose repetitions are few and never of a group."""
    plain = _CLASS.sub("x", _ESCAPED.sub("x", pattern))
    num_repeats = len(_REPEAT.findall(plain))
    if _REPEATED_GROUP.search(plain) or num_repeats > _MAX_BACKTRACKING_REPEATS:
        raise PatternError(
            f"with look-around or references it may repeat at most {_MAX_BACKTRACKING_REPEATS} times and no "
            f"group, or matching it could take forever; it repeats {num_repeats} times"
        )
    return lambda text: compiled.fullmatch(text) is not None
