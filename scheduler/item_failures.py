"""Counts the leader's failures by place: an item of its turn, or a chore. The third puts it aside."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

import structlog

from db.judge import explain
from scheduler.outages import is_passing

MAX_FAILURES: Final = 3
REST_S: Final = 60.0
"""So long an item that was put aside is passed over; most never come again."""

MAX_PLACES: Final = 10_000

CHORE: Final = "chore"
"""The part of which the leader's chores are the items: what jobs are served without for a while."""

logger = structlog.get_logger(__name__)
T = TypeVar("T")


class Place(NamedTuple):
    """Where the leader failed, e.g. at one entry in the intake."""

    part: str
    item: str


class ItemFailures:
    """Mutable: failures since an item last went through. Outages are raised, and count for nothing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: OrderedDict[Place, int] = OrderedDict()
        self._resting: OrderedDict[Place, float] = OrderedDict()
        self.num_put_aside: Counter[str] = Counter()
        """The metric: items put aside, by part."""

    @property
    def has_failures(self) -> bool:
        """Whether any item has failed and not gone through since."""
        return bool(self._failures)

    def is_resting(self, part: str, item: str) -> bool:
        """Whether an item was put aside a moment ago."""
        until = self._resting.get(Place(part, item)) if self._resting else None
        return until is not None and self._clock() < until

    def attempt(
        self, part: str, item: str, work: Callable[[], object], put_aside: Callable[[Exception], object] = str
    ) -> bool:
        """Do the work for one item, unless it rests; returns whether it went through."""
        if self.is_resting(part, item):
            return False
        try:
            work()
        except Exception as error:
            if is_passing(error):
                raise
            self.failed(part, item, error, put_aside)
            return False
        self.served(part, item)
        return True

    def chore(self, name: str, work: Callable[[], object]) -> bool:
        """Do what jobs are served without for a while, unless it rests; returns whether it went through."""
        return self.attempt(CHORE, name, work)

    def attempt_all(
        self,
        part: str,
        items: Sequence[T],
        name: Callable[[T], str],
        work: Callable[[Sequence[T]], object],
        put_aside: Callable[[T, Exception], object] = lambda _item, _error: None,
    ) -> None:
        """Do the work for all items that do not rest at once; those it fails at are found by halving."""
        awake = [item for item in items if not self.is_resting(part, name(item))] if self._resting else items
        if not awake:
            return
        try:
            work(awake)
        except Exception as error:
            if is_passing(error):
                raise
            if len(awake) == 1:
                item = awake[0]
                self.failed(part, name(item), error, lambda found: put_aside(item, found))
                return
        else:
            for item in awake if self._failures else ():
                self.served(part, name(item))
            return
        middle = len(awake) // 2
        self.attempt_all(part, awake[:middle], name, work, put_aside)
        self.attempt_all(part, awake[middle:], name, work, put_aside)

    def served(self, part: str, item: str) -> None:
        """Note that an item went through."""
        if self._failures:
            self._failures.pop(Place(part, item), None)

    def failed(
        self, part: str, item: str, error: Exception, put_aside: Callable[[Exception], object] = str
    ) -> bool:
        """Count a failure at an item; the third puts it aside. Returns whether it did."""
        place = Place(part, item)
        count = self._failures.pop(place, 0) + 1
        logger.error(
            "leader.item_failed", part=part, item=item, failures=count, error=explain(error), exc_info=error
        )
        if count < MAX_FAILURES:
            self._failures[place] = count
            _trim(self._failures)
            return False
        self._resting[place] = self._clock() + REST_S
        _trim(self._resting)
        self.num_put_aside[part] += 1
        put_aside(error)
        logger.critical(
            "leader.item_put_aside",
            part=part,
            item=item,
            error=explain(error),
            total=self.num_put_aside.total(),
        )
        return True


def _trim(places: OrderedDict[Place, T]) -> None:
    """Forget the oldest."""
    while len(places) > MAX_PLACES:
        places.popitem(last=False)
