"""Pickles what goes between a worker and its engine, several objects for each job, in a few microseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar

C = TypeVar("C", bound=type)


def pickled_by_position(cls: C) -> C:
    """Have a frozen dataclass pickled as its class and its values, in the order of its fields.

    What `dataclasses` does for one with slots asks for its fields at every object, and takes several times as
    long (Python 3.11). Both ends must be of one release. `__post_init__` runs again.
    """
    names = [field.name for field in fields(cls)]
    values: Callable[[Any], Any] = attrgetter(*names)
    is_alone = len(names) == 1  # then it is no tuple

    def reduce(self: Any) -> tuple[Any, tuple[Any, ...]]:
        return cls, (values(self),) if is_alone else values(self)

    cls.__reduce__ = reduce  # type: ignore[assignment, method-assign]
    return cls
