"""Which stores could not give which revisions, for how long each is left alone, and who is to blame.

A store is a folder on a host. Pure: times are monotonic seconds, passed in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

FIRST_PAUSE_S: Final = 30.0
LONGEST_PAUSE: Final = 20
"""In first pauses: pauses double up to ten minutes."""

MEMORY: Final = 2 * LONGEST_PAUSE
"""In first pauses: a failure older than this counts no more."""

STORES_THAT_FAILED: Final = 2
TRIES_AT_ONE_STORE: Final = 3
SPAN_OF_TRIES: Final = 2
"""In first pauses: what the tries at one store must be spread over."""


@dataclass(frozen=True, slots=True)
class StoreFailure:
    """A revision that could not be loaded from a store, which until then is not asked for it again."""

    revision: str
    store: str
    code: str
    reason: str
    first_at: float
    failed_at: float
    until: float
    pause_s: float
    """What the next pause will be twice as long as."""
    tries: int = 1
    """While the store gave other revisions, and since this one was last loaded anywhere."""


class StoreFailures:
    """Mutable: the failures that count, and when each store last gave anything."""

    def __init__(self, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self.first_pause_s = first_pause_s
        self._failures: dict[str, dict[str, StoreFailure]] = {}
        """By store, then by revision."""
        self._last_load_at: dict[str, float] = {}

    def __iter__(self) -> Iterator[StoreFailure]:
        return iter([one for by_revision in self._failures.values() for one in by_revision.values()])

    def cooling(self, store: str, now: float) -> set[str]:
        """Name the revisions that a store is not asked for now."""
        return {one.revision for one in self._failures.get(store, {}).values() if now < one.until}

    def failure(self, revision: str, store: str, code: str, reason: str, now: float) -> StoreFailure | None:
        """Make the record of a load that failed; None while it cools there: it is more word of the last."""
        before = self._failures.get(store, {}).get(revision)
        pause_s, first_at, tries = self.first_pause_s, now, 0
        if before is not None and not self._is_old(before, now):
            if now < before.until:
                return None
            pause_s = min(2 * before.pause_s, LONGEST_PAUSE * self.first_pause_s)
            tries = before.tries
            first_at = before.first_at if tries else now
        failure = StoreFailure(revision, store, code, reason, first_at, now, now + pause_s, pause_s, tries)
        if self._is_away(store, self._with(failure)):
            return failure
        return replace(failure, tries=tries + 1)

    def is_to_blame(self, failure: StoreFailure, stores: Collection[str]) -> bool:
        """Whether a failure, after all before it, is the revision's own.

        Two stores failed; or, where the pool has one for it, that store failed three times within at least
        twice the first pause, while another revision was loaded from it. What a store fails to give while it
        gives nothing at all is the store's. `stores` are those of the workers that could take the revision.
        """
        known = self._with(failure)
        against = [
            one
            for one in known
            if one.revision == failure.revision
            and one.tries
            and not self._is_old(one, failure.failed_at)
            and not self._is_away(one.store, known)
        ]
        if len(against) >= STORES_THAT_FAILED:
            return True
        if failure not in against or set(stores) - {failure.store}:
            return False
        return (
            failure.tries >= TRIES_AT_ONE_STORE
            and failure.failed_at - failure.first_at >= SPAN_OF_TRIES * self.first_pause_s
            and self._last_load_at.get(failure.store, float("-inf")) >= failure.first_at
        )

    def keep(self, failure: StoreFailure) -> None:
        """Remember a failure in the place of the one before it."""
        self._failures.setdefault(failure.store, {})[failure.revision] = failure

    def loaded(self, revision: str, store: str, now: float) -> None:
        """Note that a store gave a revision, which clears the revision.

        A store that had given nothing is back: its pauses begin anew.
        """
        is_back = self._is_away(store, list(self))
        self._last_load_at[store] = now
        self._failures.get(store, {}).pop(revision, None)
        for one in self:
            if one.revision == revision:
                self.keep(replace(one, tries=0))
            elif is_back and one.store == store:
                until = min(one.until, one.failed_at + self.first_pause_s)
                self.keep(replace(one, until=until, pause_s=self.first_pause_s))

    def prune(self, now: float) -> None:
        """Forget what is too old to count."""
        self.restore([one for one in self if not self._is_old(one, now)])
        oldest = now - MEMORY * self.first_pause_s
        self._last_load_at = {store: at for store, at in self._last_load_at.items() if at >= oldest}

    def restore(self, failures: Iterable[StoreFailure]) -> None:
        """Take over what the ledger has in the place of all that is remembered."""
        self._failures.clear()
        for failure in failures:
            self.keep(failure)

    def _with(self, failure: StoreFailure) -> list[StoreFailure]:
        """List what would be known with one more failure."""
        key = (failure.revision, failure.store)
        return [*(one for one in self if (one.revision, one.store) != key), failure]

    def _is_old(self, failure: StoreFailure, now: float) -> bool:
        return now - failure.failed_at > MEMORY * self.first_pause_s

    def _is_away(self, store: str, known: Iterable[StoreFailure]) -> bool:
        """Whether a store failed to give two revisions since it last gave one."""
        since = self._last_load_at.get(store, float("-inf"))
        return sum(one.store == store and one.failed_at > since for one in known) >= 2
