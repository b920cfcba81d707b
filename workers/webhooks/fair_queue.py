"""Decides whose webhook is sent next: three bounds at once, tenants in turn; pure, on the caller's clock."""

from __future__ import annotations

from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Generic, NamedTuple, TypeVar

from workers.webhooks.hosts import Hosts

T = TypeVar("T")

TENANT_SHARE: Final = 4
DESTINATION_SHARE: Final = 8
ALONE_SHARE: Final = 4
"""One in so many of all places: what a tenant may have; what a destination may have while others wait; and
how many may be taken if one has more than that: all the others are for whoever comes next."""

FULL_ROOM_SHARE: Final = 2
"""So many wait at least, of those who did well, when all other places are taken."""

PROVEN_PLACES: Final = 2
"""So many of each eight places are kept for receivers that accepted what they were sent last, one each."""

CROWDED_S: Final = 1.0
"""A delivery is given back for so long when enough others wait for its destination."""

UNPROVEN_CROWDED_S: Final = 5.0
"""A delivery is given back for so long when enough others wait of which nobody knows how they will fare."""

KNOWN_S: Final = 30.0
MAX_KNOWN: Final = 4096
"""Where a host leads to is remembered for so long, and of so many hosts."""


@dataclass(slots=True, eq=False)
class QueuedDelivery(Generic[T]):
    """Mutable: one delivery; `destinations` are its registrable domain and, once known, its addresses."""

    tenant: str
    host: str
    destinations: frozenset[str]
    item: T
    turn: int = 0
    """Its round: the n-th delivery of each tenant is in the n-th round from now."""
    number: int = 0
    """Its place among those of one round: the order in which they came."""
    is_proven: bool = False
    """Whether its receiver did well lately; in its place, whether that is one kept for such receivers."""
    began_at: float = float("-inf")
    """When it was given its place."""


class GivenBack(NamedTuple, Generic[T]):
    """A delivery that need not wait here; it may be claimed again after some seconds."""

    delivery: QueuedDelivery[T]
    in_s: float


@dataclass(slots=True)
class _Counts:
    total: int = 0
    unproven: int = 0
    tenants: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    destinations: Counter[str] = field(default_factory=Counter)

    def add(self, delivery: QueuedDelivery[T], number: int) -> None:
        self.total += number
        self.unproven += 0 if delivery.is_proven else number
        _add(self.tenants, (delivery.tenant,), number)
        _add(self.hosts, (delivery.host,), number)
        _add(self.destinations, delivery.destinations, number)


class FairQueue(Generic[T]):
    """Mutable: the deliveries that wait, the places that others hold, and the standing of receivers.

    Of C places a tenant has at most C/4; a destination (an address, a registrable domain) has at most C/8
    while others wait, and more than that only as long as C/4 places are taken at most. The last C/4 are for
    receivers that accepted what they were sent last, one each: whoever else hangs, each at an address of its
    own, leaves these their way. Among those who may be sent, the one whose turn has been due the longest
    comes first.
    """

    def __init__(self, num_places: int, max_per_host: int | None = None, hosts: Hosts | None = None) -> None:
        self._num_places = num_places
        self._max_per_tenant = max(1, num_places // TENANT_SHARE)
        self._max_per_destination = max(1, num_places // DESTINATION_SHARE)
        self._max_per_host = max_per_host or num_places
        self._num_alone = max(1, num_places // ALONE_SHARE)
        self._max_unproven = num_places - PROVEN_PLACES * (num_places // DESTINATION_SHARE)
        self._hosts = hosts or Hosts()
        self._queue: list[QueuedDelivery[T]] = []
        self._waiting, self._in_flight = _Counts(), _Counts()
        self._round = 0
        self._last_turns: dict[str, int] = {}
        """The latest turn given to each tenant, where it is later than the present round."""
        self._known: OrderedDict[str, tuple[frozenset[str], float]] = OrderedDict()
        self._numbers = count()

    def __iter__(self) -> Iterator[QueuedDelivery[T]]:
        """Those that wait, in the order of their turns."""
        return iter(self._queue)

    @property
    def num_waiting(self) -> int:
        """How many deliveries wait."""
        return self._waiting.total

    @property
    def num_in_flight(self) -> int:
        """How many places are taken."""
        return self._in_flight.total

    @property
    def max_claimed(self) -> int:
        """How many deliveries of one tenant and host are worth claiming at a time.

        Once places are left for receivers alone that do well, one: theirs are behind those of all others.
        """
        return 1 if self._is_full else self._max_per_destination

    @property
    def max_claimed_of_host(self) -> int:
        """How many deliveries to one host are worth claiming at a time: no more may wait."""
        return 2 * self._max_per_destination

    @property
    def room(self) -> int:
        """How many deliveries more may wait: twice as many wait as there are places.

        There is room to look for those of receivers that do well even then.
        """
        room = 2 * self._num_places - self._waiting.total
        return max(room, self._num_places // FULL_ROOM_SHARE) if self._is_full else room

    @property
    def _is_full(self) -> bool:
        """Whether the places that are left are for receivers alone that do well."""
        return self._in_flight.unproven >= self._max_unproven < self._num_places

    def offer(self, delivery: QueuedDelivery[T], now: float) -> float:
        """Let a delivery wait and return 0, or return for how many seconds it is to be given back."""
        if self._known.get(delivery.host, (None, now))[1] <= now:
            self._learn(delivery.host, delivery.destinations, now)
        if pause_s := self._hosts.pause_left_s(_receiver(delivery), now):
            return pause_s
        if any(self._waiting.destinations[one] >= self.max_claimed_of_host for one in delivery.destinations):
            return CROWDED_S
        delivery.is_proven = self._hosts.is_proven(_receiver(delivery), now)
        if not delivery.is_proven and self._waiting.unproven >= 2 * self._num_places:
            return UNPROVEN_CROWDED_S
        if not delivery.turn:
            delivery.turn = max(self._round, self._last_turns.get(delivery.tenant, 0)) + 1
            self._last_turns[delivery.tenant] = delivery.turn
            delivery.number = next(self._numbers)
        self._waiting.add(delivery, 1)
        insort(self._queue, delivery, key=_order)
        return 0.0

    def start(self, now: float) -> QueuedDelivery[T] | None:
        """Give a place to the delivery that is next; None if there is no place, or nobody who may have it."""
        for is_spare in (False, True):
            for delivery in self._queue:
                if self._may_start(delivery, now, is_spare=is_spare):
                    return self._begin(delivery, now)
        return None

    def reach(self, delivery: QueuedDelivery[T], addresses: Iterable[str], now: float) -> bool:
        """Name the addresses of a delivery in its place; False if they are taken: it must leave the place.

        Offered again it keeps its turn, and waits for the addresses too.
        """
        destinations = delivery.destinations | frozenset(addresses)
        self._in_flight.add(delivery, -1)
        others_wait = any(self._may_start(other, now, is_spare=False) for other in self._queue)
        fits = self._has_room(delivery, destinations, is_spare=False) or (
            not others_wait and self._has_room(delivery, destinations, is_spare=True)
        )
        delivery.destinations = destinations
        self._in_flight.add(delivery, 1)
        self._learn(delivery.host, destinations, now)
        return fits

    def end(self, delivery: QueuedDelivery[T], now: float, *, ok: bool | None = None) -> None:
        """Free a place; `ok` tells how the receiver did, None that it was not asked."""
        self._in_flight.add(delivery, -1)
        if ok is not None:
            self._hosts.record(_receiver(delivery), ok=ok, began_at=delivery.began_at, now=now)
        self._hosts.end(_receiver(delivery))

    def take_paused(self, now: float) -> list[GivenBack[T]]:
        """Remove the deliveries whose receiver is paused, with the time until that is over."""
        paused = [
            GivenBack(delivery, pause_s)
            for delivery in self._queue
            if (pause_s := self._hosts.pause_left_s(_receiver(delivery), now))
        ]
        for delivery, _ in paused:
            self._remove(delivery)
        return paused

    def take_all(self) -> list[GivenBack[T]]:
        """Remove all that waits, to be claimed again at once."""
        taken = [GivenBack(delivery, 0.0) for delivery in self._queue]
        for delivery, _ in taken:
            self._remove(delivery)
        return taken

    def crowded_tenants(self) -> list[str]:
        """Name the tenants of whom enough deliveries wait."""
        return [name for name, waiting in self._waiting.tenants.items() if waiting >= self._max_per_tenant]

    def crowded_hosts(self, now: float) -> list[str]:
        """Name the hosts for which, or for whose destinations, enough deliveries wait."""
        counts = self._waiting.destinations.items()
        crowded = {name for name, waiting in counts if waiting >= self._max_per_destination}
        if not crowded:
            return []
        return [
            host
            for host, (destinations, until) in self._known.items()
            if until > now and not crowded.isdisjoint(destinations)
        ]

    def _begin(self, delivery: QueuedDelivery[T], now: float) -> QueuedDelivery[T]:
        self._remove(delivery)
        delivery.is_proven = self._may_have_kept(delivery, now)
        delivery.began_at = now
        self._in_flight.add(delivery, 1)
        self._hosts.begin(_receiver(delivery))
        if delivery.turn > self._round:
            self._round = delivery.turn
            self._last_turns = {name: turn for name, turn in self._last_turns.items() if turn > self._round}
        return delivery

    def _remove(self, delivery: QueuedDelivery[T]) -> None:
        self._queue.remove(delivery)
        self._waiting.add(delivery, -1)

    def _may_start(self, delivery: QueuedDelivery[T], now: float, *, is_spare: bool) -> bool:
        if self._is_full and not self._may_have_kept(delivery, now):
            return False
        has_room = self._has_room(delivery, delivery.destinations, is_spare=is_spare)
        return has_room and self._hosts.may_call(_receiver(delivery), now)

    def _may_have_kept(self, delivery: QueuedDelivery[T], now: float) -> bool:
        receiver = _receiver(delivery)
        return self._hosts.is_idle(receiver) and self._hosts.is_proven(receiver, now)

    def _has_room(self, delivery: QueuedDelivery[T], destinations: frozenset[str], *, is_spare: bool) -> bool:
        busy = self._in_flight
        if busy.total >= (self._num_alone if is_spare else self._num_places):
            return False
        if busy.tenants[delivery.tenant] >= self._max_per_tenant:
            return False
        if busy.hosts[delivery.host] >= self._max_per_host:
            return False
        return is_spare or all(busy.destinations[one] < self._max_per_destination for one in destinations)

    def _learn(self, host: str, destinations: frozenset[str], now: float) -> None:
        self._known[host] = (destinations, now + KNOWN_S)
        self._known.move_to_end(host)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


def _receiver(delivery: QueuedDelivery[T]) -> tuple[str, str]:
    return delivery.tenant, delivery.host


def _order(delivery: QueuedDelivery[T]) -> tuple[int, int]:
    return delivery.turn, delivery.number


def _add(counter: Counter[str], names: Iterable[str], number: int) -> None:
    for name in names:
        counter[name] += number
        if not counter[name]:
            del counter[name]
