"""Adapters kept packed in host memory; the least recently used leaves first, a busy one never."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from workers.engine.lora.weights import AdapterWeights

# How long an adapter loaded for a waiting request is safe from other waiting requests' loads. Without it two
# that wait for one place would load over each other without end; after it an aborted one's place is free.
WANTED_S = 1.0


@dataclass(slots=True)
class _Entry:
    weights: AdapterWeights
    wanted_until: float


class HostCache:
    """Packed adapters by revision."""

    def __init__(
        self,
        capacity: int,
        *,
        max_saved_bytes: int | None = None,
        is_busy: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        """`is_busy` says whether a revision is in use or pinned; such a revision never leaves.

        `max_saved_bytes` bounds the whole modules (modules_to_save) of all adapters together.
        """
        self._max_saved_bytes = max_saved_bytes
        self.capacity = capacity
        self._is_busy = is_busy
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def __contains__(self, revision: str) -> bool:
        return revision in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    @property
    def num_bytes(self) -> int:
        return sum(entry.weights.num_bytes for entry in self._entries.values())

    @property
    def saved_bytes(self) -> int:
        """The bytes of whole modules that adapters brought."""
        return sum(entry.weights.saved_bytes for entry in self._entries.values())

    def peek(self, revision: str) -> AdapterWeights:
        """Return a revision's weights without using them."""
        return self._entries[revision].weights

    def use(self, revision: str) -> AdapterWeights:
        """Return a revision's weights and make it the most recently used."""
        entry = self._entries[revision]
        entry.wanted_until = 0.0
        self._entries.move_to_end(revision)
        return entry.weights

    def want(self, revision: str) -> None:
        """Keep a revision for a request that waits for a slot."""
        self._entries[revision].wanted_until = self._clock() + WANTED_S
        self._entries.move_to_end(revision)

    def has_room_for(self, num_more: int, *, even_wanted: bool = False) -> bool:
        """Tell whether so many more could come without touching what is busy or, unless told so, wanted."""
        return self._leaving_for(num_more, 0, even_wanted) is not None

    def put(self, weights: AdapterWeights, *, even_wanted: bool = False) -> list[str] | None:
        """Keep a loaded adapter; returns the revisions that left for it, or None if there is no room now."""
        leaving = self._leaving_for(1, weights.saved_bytes, even_wanted)
        if leaving is None:
            return None
        for revision in leaving:
            del self._entries[revision]
        self._entries[weights.digest] = _Entry(weights, self._clock() + WANTED_S)
        return leaving

    def drop(self, revision: str) -> None:
        del self._entries[revision]

    def _leaving_for(self, num_more: int, more_saved_bytes: int, even_wanted: bool) -> list[str] | None:
        """Return who would leave for newcomers, as few as will do; None if too few may leave."""
        leaving: list[str] = []
        num_over = len(self._entries) + num_more - self.capacity
        limit = self._max_saved_bytes
        saved_over = (
            0 if limit is None or not more_saved_bytes else self.saved_bytes + more_saved_bytes - limit
        )
        candidates = self._evictable(even_wanted)
        while num_over > 0 or saved_over > 0:
            revision = next(candidates, None)
            if revision is None:
                return None
            saved_bytes = self._entries[revision].weights.saved_bytes
            if num_over > 0 or saved_bytes:
                leaving.append(revision)
                num_over -= 1
                saved_over -= saved_bytes
        return leaving

    def _evictable(self, even_wanted: bool) -> Iterator[str]:
        now = self._clock()
        for revision, entry in self._entries.items():
            if (even_wanted or entry.wanted_until <= now) and not self._is_busy(revision):
                yield revision
