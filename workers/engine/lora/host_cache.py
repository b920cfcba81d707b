"""Adapters kept packed in host memory; the least recently used leaves first, a busy one never."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

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

    def __init__(self, capacity: int, *, is_busy: Callable[[str], bool], clock: Callable[[], float]) -> None:
        """`is_busy` says whether a revision is in use or pinned; such a revision never leaves."""
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
        needed = len(self._entries) + num_more - self.capacity
        return needed <= 0 or len(list(islice(self._evictable(even_wanted), needed))) == needed

    def put(self, weights: AdapterWeights, *, even_wanted: bool = False) -> list[str] | None:
        """Keep a loaded adapter; returns the revisions that left for it, or None if there is no room now."""
        if not self.has_room_for(1, even_wanted=even_wanted):
            return None
        num_leaving = max(0, len(self._entries) + 1 - self.capacity)
        leaving = list(islice(self._evictable(even_wanted), num_leaving))
        for revision in leaving:
            del self._entries[revision]
        self._entries[weights.digest] = _Entry(weights, self._clock() + WANTED_S)
        return leaving

    def drop(self, revision: str) -> None:
        del self._entries[revision]

    def _evictable(self, even_wanted: bool) -> Iterator[str]:
        now = self._clock()
        for revision, entry in self._entries.items():
            if (even_wanted or entry.wanted_until <= now) and not self._is_busy(revision):
                yield revision
