"""Bounds what one operation of a chat template may make, before it makes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple, TypeVar

from jinja2.exceptions import SecurityError

MAX_MADE_CHARS = 16_000_000
"""What one operation may make, or read to make a text of it."""
MAX_TOTAL_CHARS = 64_000_000
"""What all operations of one rendering may make together."""
_ENTRY_CHARS = 32
"""What an entry of a list counts as, for looking at it takes about as long as writing them."""
# fmt: off
_STRUCTURAL = frozenset({
    "abs", "attr", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last",
    "length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "round", "select",
    "selectattr", "sort", "unique",
})
# fmt: on
_TEXTS, _CONTAINERS = (str, bytes), (list, tuple, dict, set, frozenset)
_COMPUTED_WIDTH = re.compile(r"%[-+ #0]*(?:\d+)?(?:\.)?\*|\{[^{}]*[:!][^{}]*\{")
_made: ContextVar[list[int] | None] = ContextVar("made", default=None)
Value = TypeVar("Value")


@contextmanager
def metered() -> Iterator[None]:
    """Count from nothing what one rendering makes."""
    token = _made.set([0])
    try:
        yield
    finally:
        _made.reset(token)


def made(value: Value) -> Value:
    """Count what an operation has made; SecurityError if that is too much, alone or with all before it."""
    if isinstance(value, str):
        size = len(value)
    elif isinstance(value, list | tuple | set | dict):
        size = _ENTRY_CHARS * len(value)
    else:
        return value
    _bound(size)
    if (count := _made.get()) is None:  # nothing is being rendered
        return value
    count[0] += size
    if count[0] > MAX_TOTAL_CHARS:
        raise SecurityError(f"its operations make more than {MAX_TOTAL_CHARS} characters together; repair it")
    return value


def weight(*values: object) -> int:
    """Return about how many characters these take as text, containers in full; SecurityError for too many."""
    size, todo = 0, list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, _TEXTS):
            size += len(value)
        elif isinstance(value, _CONTAINERS):
            size += _ENTRY_CHARS * (len(value) + 1)
            if size <= MAX_MADE_CHARS:
                todo += (*value.keys(), *value.values()) if isinstance(value, dict) else value
        if size > MAX_MADE_CHARS:  # not by a function, for each call is looked at by what watches the time
            _bound(size)
    return size


class _Call(NamedTuple):
    """A filter, or a method of a text or number, and what it is given."""

    value: object
    others: Sequence[object]  # its further arguments, those by name too

    @property
    def text(self) -> str:
        value = self.value
        return (
            value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""
        )

    @property
    def number(self) -> int:
        return max((abs(one) for one in self.others if isinstance(one, int)), default=0)

    @property
    def num_chars(self) -> int:
        return sum(len(one) for one in self.others if isinstance(one, str))


def bound_call(name: str, value: object, others: Sequence[object]) -> None:
    """Refuse a filter, or a method of a text or number, that would make too much of what it is given."""
    if name not in _STRUCTURAL:
        rule = _RULES.get(name, _linear)
        _bound(rule(_Call(value, others), weight(value, *others)))


def bound_remainder(left: object, right: object) -> None:
    """Refuse `%` between a format and what would make it too long."""
    if isinstance(left, str | bytes):
        _bound(_formatted(_Call(left, [right]), weight(left, right)))


def bound_sum(left: object, right: object) -> None:
    """Refuse to put two texts or lists together that are too long."""
    _bound(sum(len(one) for one in (left, right) if isinstance(one, str | list | tuple)))


def bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that refuses to make too much."""
    num_passed = int(getattr(function, "jinja_pass_arg", None) is not None)  # such as Jinja's context

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        passed, (value, *others) = args[:num_passed], args[num_passed:]
        if name in ("join", "sum") and isinstance(value, Iterator):
            value = list(value)
        bound_call(name, value, [*others, *kwargs.values()])
        return made(function(*passed, value, *others, **kwargs))

    return run


def _formatted(call: _Call, size: int) -> int:
    """Bound what a format makes of arguments of this size: each field may show all of them."""
    if _COMPUTED_WIDTH.search(call.text):
        raise SecurityError("it formats with a width that is computed; write the width as a number")
    widths = [int(digits[:12]) for digits in re.findall(r"\d+", call.text)]
    num_fields = max(call.text.count("%"), call.text.count("{"))
    return size + num_fields * (size + max(widths, default=0))


def _linear(_call: _Call, size: int) -> int:
    return size


def _padded(call: _Call, size: int) -> int:
    return size + call.number


def _wrapped(call: _Call, size: int) -> int:
    return size + len(call.text) * call.num_chars


def _expanded(call: _Call, size: int) -> int:
    return size + call.text.count("\t") * call.number


def _indented(call: _Call, size: int) -> int:
    return size + (call.text.count("\n") + 1) * (call.number + call.num_chars)


def _replaced(call: _Call, size: int) -> int:
    old, new = map(str, (*call.others, "", "")[:2])
    return size + call.text.count(old) * len(new)


def _translated(call: _Call, size: int) -> int:
    tables = [one for one in call.others if isinstance(one, Mapping)]
    return size + len(call.text) * max(
        (_length(one) for table in tables for one in table.values()), default=1
    )


def _separated(call: _Call, size: int) -> int:
    """JSON, attributes and links: what is given beside the value may stand before each part of it."""
    separators = [text for one in call.others if isinstance(one, list | tuple) for text in one]
    return size * (1 + call.num_chars + sum(map(_length, separators)))


def _joined(call: _Call, size: int) -> int:
    """`items|join(separator)` and `separator.join(items)` alike."""
    return size + _length(call.value) * max(map(_length, call.others), default=0)


def _summed(call: _Call, size: int) -> int:
    """Lists put together one after another are copied each time."""
    items = call.value if isinstance(call.value, list | tuple) else ()
    return size * len(items) if any(isinstance(one, list | tuple) for one in items) else size


_RULES: Mapping[str, Callable[[_Call, int], int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "batch", "slice", "to_bytes"), _padded),
    **dict.fromkeys(("format", "format_map"), _formatted),
    **dict.fromkeys(("tojson", "xmlattr", "urlize"), _separated),
    "expandtabs": _expanded,
    "indent": _indented,
    "join": _joined,
    "replace": _replaced,
    "sum": _summed,
    "translate": _translated,
    "wordwrap": _wrapped,
}


def _bound(size: int) -> None:
    if size > MAX_MADE_CHARS:
        raise SecurityError(f"an operation would make more than {MAX_MADE_CHARS} characters; repair it")


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | set | dict | range) else 0
