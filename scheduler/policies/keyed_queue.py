"""A priority queue whose items change their keys: a key that grew is found out when it surfaces."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Key = tuple[Any, ...]


class KeyedQueue(Generic[T]):
    """Mutable: items by the smallest key; each stands in it once, under the key it was last seen with.

    Keys of one queue compare with each other. A key that grows needs no word; one that falls needs a `push`.
    """

    def __init__(self, key: Callable[[T], Key | None]) -> None:
        """`key` returns None for an item that no longer belongs here."""
        self._key = key
        self._heap: list[tuple[Key, int, T]] = []
        self._seen: dict[T, Key] = {}
        self._pushes = itertools.count()

    def __len__(self) -> int:
        return len(self._seen)

    def push(self, item: T) -> None:
        """Let an item in, or note that its key may have fallen."""
        key = self._key(item)
        if key is None:
            self._seen.pop(item, None)
        elif self._seen.get(item) != key:
            self._enter(item, key)

    def first(self) -> T | None:
        """Show the item with the smallest key."""
        while self._heap:
            key, _, item = self._heap[0]
            if self._seen.get(item) != key:
                heapq.heappop(self._heap)
                continue
            current = self._key(item)
            if current == key:
                return item
            heapq.heappop(self._heap)
            del self._seen[item]
            if current is not None:
                self._enter(item, current)
        return None

    def set_aside(self, item: T) -> None:
        """Pass an item over until it is pushed again."""
        self._seen.pop(item, None)

    def _enter(self, item: T, key: Key) -> None:
        self._seen[item] = key
        # The count keeps items from being compared.
        heapq.heappush(self._heap, (key, next(self._pushes), item))
        if len(self._heap) > 2 * len(self._seen) + 64:
            self._heap = [entry for entry in self._heap if self._seen.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
