"""Fair shares of tenants: the virtual token counter (VTC) over the whole fleet.

Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each tenant has a counter of the
service that it got, by its weight; who has the least comes first; one that had nothing waiting is lifted, so
that it cannot save up. Here a job is charged when it is planned, by its expected length, and set right when
it has ended.

A counter is `lift + (service + in flight) / weight`. Lift and weight are kept in the ledger when they change,
service is what committed usage says, and in flight are the leased jobs: so a new leader counts the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from scheduler.policies.output_length import OutputLengths
from scheduler.policies.types import PendingJob

PROMPT_COST: Final = 1.0
OUTPUT_COST: Final = 2.0
"""Of one token; VTC's own weights."""


def service_cost(prompt_tokens: float, completion_tokens: float) -> float:
    """Tell the service in so many tokens."""
    return PROMPT_COST * prompt_tokens + OUTPUT_COST * completion_tokens


class Standing(NamedTuple):
    """What the ledger keeps of a tenant's counter: it holds under this weight."""

    lift: float = 0.0
    service: float = 0.0
    weight: float = 1.0


class Share:
    """Mutable: one tenant's counter."""

    __slots__ = ("_reached", "in_flight", "lift", "service", "tenant", "weight")

    def __init__(self, tenant: str, standing: Standing = Standing()) -> None:  # noqa: B008 - immutable
        self.tenant = tenant
        self.lift, self.service, self.weight = standing
        self.in_flight = 0.0
        """Cost of what was planned and has not ended."""
        self._reached = float("-inf")

    @property
    def counter(self) -> float:
        """What the tenant got, by its weight."""
        return self.lift + (self.service + self.in_flight) / self.weight

    @property
    def rank(self) -> float:
        """Sort key: never falls, so that what was charged too much is served before anything else is."""
        self._reached = max(self._reached, self.counter)
        return self._reached

    def reweigh(self, weight: float) -> None:
        """Take another weight for what comes; what was is left as it counted."""
        counter, self.weight = self.counter, weight
        self.lift += counter - self.counter


@dataclass(frozen=True, slots=True)
class _Charge:
    share: Share
    cost: float
    job: PendingJob


class Fairness:
    """Mutable: the counters of all tenants, and what was charged for jobs that have not ended."""

    def __init__(self, lengths: OutputLengths | None = None, *, window: float = 0.0) -> None:
        """`window`: how far a tenant may run ahead of another for the sake of an adapter, in tokens' cost."""
        self.lengths = lengths or OutputLengths()
        self.window = window
        self._shares: dict[str, Share] = {}
        self.weights: dict[str, float] = {}
        """Of the tenants for which they are not 1."""
        self._charges: dict[UUID, _Charge] = {}
        self._time = float("-inf")
        self._changed: set[str] = set()

    def share(self, tenant: str) -> Share:
        """Find a tenant's counter."""
        share = self._shares.get(tenant)
        if share is None:
            share = self._shares[tenant] = Share(tenant, Standing(weight=self.weights.get(tenant, 1.0)))
        return share

    @property
    def num_known(self) -> int:
        """Of how many tenants the counters are here."""
        return len(self._shares)

    def knows(self, tenant: str) -> bool:
        """Whether a tenant's counter is here; if not, the ledger may have it."""
        return tenant in self._shares

    def remember(self, standings: Mapping[str, Standing]) -> None:
        """Take over counters from the ledger that had been forgotten."""
        for tenant, standing in standings.items():
            self._shares[tenant] = Share(tenant, standing)

    def forget(self, waiting: Collection[str]) -> None:
        """Forget the counters that the ledger has as they are, of tenants without a job queued or in flight.

        `waiting` are all tenants with queued jobs, whether they are in memory or not.
        """
        in_flight = {charge.share.tenant for charge in self._charges.values()}
        kept = in_flight.union(waiting, self._changed)
        self._shares = {tenant: share for tenant, share in self._shares.items() if tenant in kept}

    def arrive(self, tenant: str) -> None:
        """Lift a tenant that had nothing waiting to at most one window behind the others.

        So it goes first for one window, however much the others have waiting, and has no more saved up. It is
        lifted only when two windows behind, so that few lifts have to be written down.
        """
        self._lift(self.share(tenant), tolerance=2 * self.window)

    def serve(self, rank: float) -> None:
        """Note the rank of the tenant whose turn it is: those that arrive are measured by it."""
        self._time = max(self._time, rank)

    def charge(self, job: PendingJob) -> None:
        """Charge a job that is planned; one that nobody could serve before has not saved up either."""
        share = self.share(job.tenant)
        self._lift(share, tolerance=2 * self.window)
        cost = service_cost(self.lengths.prompt_tokens(job), self.lengths.expected(job))
        self._charges[job.job_id] = _Charge(share, cost, job)
        share.in_flight += cost

    def take_back(self, job_id: UUID) -> None:
        """Undo the charge of a job that waits again."""
        if (charge := self._charges.pop(job_id, None)) is not None:
            charge.share.in_flight -= charge.cost

    def settle(self, job_id: UUID, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Replace the charge of a job that has ended by what it came to, if known, and learn from that."""
        if (charge := self._charges.pop(job_id, None)) is None:
            return
        share = charge.share
        share.in_flight -= charge.cost
        if prompt_tokens is None or completion_tokens is None:
            share.service += charge.cost
            return
        share.service += service_cost(prompt_tokens, completion_tokens)
        self.lengths.learn(charge.job, prompt_tokens, completion_tokens)

    def keep_charges(self, is_in_flight: Callable[[UUID], bool]) -> None:
        """Undo the charges of jobs that nobody has any more: their end was not heard of."""
        for job_id in [job_id for job_id in self._charges if not is_in_flight(job_id)]:
            self.take_back(job_id)

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """Take over the tenants' weights; who is not named has 1."""
        self.weights.clear()
        self.weights.update(weights)
        for tenant, share in self._shares.items():
            weight = self.weights.get(tenant, 1.0)
            if share.weight != weight:
                share.reweigh(weight)
                self._changed.add(tenant)

    def restore(
        self, standings: Mapping[str, Standing], leased: Iterable[PendingJob], waiting: Iterable[str]
    ) -> None:
        """Start over from the ledger: counters, jobs in workers' hands, and the tenants with queued jobs."""
        self._shares = {tenant: Share(tenant, standing) for tenant, standing in standings.items()}
        self._charges.clear()
        self._changed.clear()
        self._time = float("-inf")
        for job in leased:
            self.charge(job)
        present = [self.share(tenant).rank for tenant in waiting]
        known = [share.rank for share in self._shares.values()]
        self._time = min(present) if present else max(known, default=float("-inf"))
        self.reweigh(dict(self.weights))

    def changed(self) -> dict[str, Standing]:
        """Show the lifts and weights that the ledger has not yet."""
        return {tenant: self.standing(tenant) for tenant in self._changed}

    def note_written(self, written: Mapping[str, Standing]) -> None:
        """Note that the ledger has lifts and weights."""
        self._changed -= {
            tenant for tenant, one in written.items() if (one.lift, one.weight) == self.standing(tenant)[::2]
        }

    def standing(self, tenant: str) -> Standing:
        """Show a counter without what is in flight."""
        share = self.share(tenant)
        return Standing(share.lift, share.service, share.weight)

    def _lift(self, share: Share, *, tolerance: float) -> None:
        if share.rank < self._time - tolerance:
            share.lift += self._time - self.window - share.counter
            self._changed.add(share.tenant)
