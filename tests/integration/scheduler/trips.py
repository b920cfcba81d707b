"""Has the leader's functions fail at one item, or whatever they are called with."""

from __future__ import annotations

from typing import Any

import pytest


class Trips:
    """Has functions raise whenever one of their arguments names an item, and remembers which did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.tripped: set[str] = set()

    def at(self, owner: type[Any], name: str, item: Any = None) -> None:
        """Have a method fail at an item, or whatever it is called with."""
        method = getattr(owner, name)
        place = f"{owner.__name__}.{name}"

        def call(*args: Any, **kwargs: Any) -> Any:
            if item is None or any(_names(one, item) for one in args):
                self.tripped.add(place)
                raise KeyError(f"told to fail at {place}")
            return method(*args, **kwargs)

        self._patch.setattr(owner, name, call)


def _names(argument: Any, item: Any) -> bool:
    """Whether an argument is, holds or is about an item."""
    if isinstance(argument, (list, tuple)) and not hasattr(argument, "_fields"):
        return any(_names(one, item) for one in argument)
    if argument == item:
        return True
    about = [argument, getattr(argument, "envelope", None), getattr(argument, "message", None)]
    return any(item in (getattr(one, "job_id", None), getattr(one, "incarnation", None)) for one in about)
