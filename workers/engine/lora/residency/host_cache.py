"""Adapters kept packed in host memory; who leaves first is told by hints and use, a busy one never does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from workers.engine.lora.tables.adapter_weights import AdapterWeights

# How long an adapter loaded for a waiting request is safe from other waiting requests' loads. Without it two
# that wait for one place would load over each other without end; after it an aborted one's place is free.
WANTED_S = 1.0

_NEVER = 1 << 62
"""The turn of a revision that no hint names."""


class _Size(NamedTuple):
    """Bytes of LoRA, and of whole modules."""

    lora: int
    saved: int


@dataclass(slots=True)
class _Entry:
    weights: AdapterWeights
    size: _Size
    wanted_until: float


class HostCache:
    """Packed adapters by revision."""

    def __init__(
        self,
        capacity: int,
        *,
        max_bytes: int | None = None,
        max_saved_bytes: int | None = None,
        is_busy: Callable[[str], bool],
        is_pinned: Callable[[str], bool] = lambda _: False,
        clock: Callable[[], float],
    ) -> None:
        """`is_busy` says whether a revision is in use or pinned; such a revision never leaves.

        `is_pinned` says whether it is pinned, so that waiting for it is in vain.

        `max_bytes` bounds the LoRA of all adapters together, `max_saved_bytes` their whole modules
        (modules_to_save).
        """
        self.capacity = capacity
        self._max_bytes = max_bytes
        self._max_saved_bytes = max_saved_bytes
        self.num_bytes = 0
        self.saved_bytes = 0
        self._is_busy = is_busy
        self._is_pinned = is_pinned
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._turns: dict[str, int] = {}  # when a revision is needed, by hint; 0 is next
        self._expendable: set[str] = set()

    def __contains__(self, revision: str) -> bool:
        return revision in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def peek(self, revision: str) -> AdapterWeights:
        """Return a revision's weights without using them."""
        return self._entries[revision].weights

    def use(self, revision: str) -> AdapterWeights:
        """Return a revision's weights and make it the most recently used."""
        entry = self._entries[revision]
        entry.wanted_until = 0.0
        self._expendable.discard(revision)
        self._entries.move_to_end(revision)
        return entry.weights

    def want(self, revision: str) -> None:
        """Keep a revision for a request that waits for a slot."""
        self._entries[revision].wanted_until = self._clock() + WANTED_S
        self._entries.move_to_end(revision)

    def expend(self, revision: str) -> None:
        """Let a revision leave before all others, unless it is used again."""
        self._expendable.add(revision)

    def expect(self, revision: str, turn: int | None) -> None:
        """Take a hint when a revision will be needed; None takes it back. The latest needed leaves first."""
        if turn is None:
            self._turns.pop(revision, None)
        else:
            self._turns[revision] = turn

    def expect_nothing(self) -> None:
        """Take back all hints."""
        self._turns.clear()
        self._expendable.clear()

    def has_room_for(self, num_more: int, *, turn: int | None = None) -> bool:
        """Tell whether so many more could come without touching what is busy or wanted.

        Those that come for a hint, with a `turn`, do not touch what is needed before them either. How large
        they are is not known before they are loaded.
        """
        candidates = self._evictable(even_wanted=False, turn=turn)
        return self._leaving_for(num_more, _Size(0, 0), candidates) is not None

    def can_put(self, weights: AdapterWeights, *, even_wanted: bool = False) -> bool:
        """Tell whether a loaded adapter finds room; what is wanted gives way only if told so."""
        return self._leaving_for_one(weights, even_wanted) is not None

    def is_shut_out(self, weights: AdapterWeights) -> bool:
        """Tell whether a loaded adapter finds no room for as long as what is pinned remains so."""
        unpinned = (revision for revision in self._entries if not self._is_pinned(revision))
        return self._leaving_for(1, _size(weights), unpinned) is None

    def put(self, weights: AdapterWeights, *, even_wanted: bool = False) -> list[str] | None:
        """Keep a loaded adapter; returns the revisions that left for it, or None if there is no room now."""
        size = _size(weights)
        leaving = self._leaving_for_one(weights, even_wanted)
        if leaving is None:
            return None
        for revision in leaving:
            self.drop(revision)
        self._entries[weights.digest] = _Entry(weights, size, self._clock() + WANTED_S)
        self.num_bytes += size.lora
        self.saved_bytes += size.saved
        return leaving

    def drop(self, revision: str) -> None:
        """Forget a revision; its memory is free once no slot points at it."""
        self._expendable.discard(revision)
        size = self._entries.pop(revision).size
        self.num_bytes -= size.lora
        self.saved_bytes -= size.saved

    def _leaving_for_one(self, weights: AdapterWeights, even_wanted: bool) -> list[str] | None:
        turn = None if even_wanted else self._turns.get(weights.digest)
        return self._leaving_for(1, _size(weights), self._evictable(even_wanted, turn))

    def _leaving_for(self, num_more: int, more: _Size, candidates: Iterator[str]) -> list[str] | None:
        """Return which candidates would leave for newcomers, as few as will do; None if they are too few."""
        leaving: list[str] = []
        num_over = len(self._entries) + num_more - self.capacity
        lora_over = _over(self.num_bytes, more.lora, self._max_bytes)
        saved_over = _over(self.saved_bytes, more.saved, self._max_saved_bytes)
        while num_over > 0 or lora_over > 0 or saved_over > 0:
            revision = next(candidates, None)
            if revision is None:
                return None
            size = self._entries[revision].size
            if num_over > 0 or (lora_over > 0 and size.lora) or (saved_over > 0 and size.saved):
                leaving.append(revision)
                num_over -= 1
                lora_over -= size.lora
                saved_over -= size.saved
        return leaving

    def _evictable(self, even_wanted: bool, turn: int | None) -> Iterator[str]:
        """Iterate over who may leave: the expendable, then those no hint names, then the latest needed."""
        now = self._clock()
        idle = (
            revision
            for revision, entry in self._entries.items()
            if (even_wanted or entry.wanted_until <= now) and not self._is_busy(revision)
        )
        if not self._turns and not self._expendable:
            return idle
        may_leave = [one for one in idle if turn is None or self._turns.get(one, turn + 1) > turn]
        return iter(sorted(may_leave, key=self._order))

    def _order(self, revision: str) -> tuple[bool, int]:
        return revision not in self._expendable, -self._turns.get(revision, _NEVER)


def _size(weights: AdapterWeights) -> _Size:
    return _Size(weights.num_bytes, weights.saved_bytes)


def _over(held: int, more: int, limit: int | None) -> int:
    """Return by how much a newcomer goes over a limit; one that brings nothing of the kind never does."""
    return 0 if limit is None or not more else held + more - limit
