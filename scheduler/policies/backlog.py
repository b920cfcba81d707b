"""The backlog in memory: every waiting job once, in lanes that are kept in order as jobs come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final
from uuid import UUID

from scheduler.policies.deadlines import FleetOutlook, is_hopeless, is_late, presses, start_by
from scheduler.policies.fairness import Fairness
from scheduler.policies.keyed_queue import Key, KeyedQueue
from scheduler.policies.lane import Lane, LaneName
from scheduler.policies.queue_order import QueueOrder
from scheduler.policies.suspects import SuspectGroups
from scheduler.policies.tenant_queue import NUM_CLASSES, TenantQueue
from scheduler.policies.types import AdapterDemand, PendingJob, PolicyConfig, Revision

LOADS_APART: Final = 10
"""Loads for the sake of overdue jobs take at most such a part of a worker's time."""

MAX_SWITCHES: Final = 4_096
"""Workers whose last switch is remembered before those who may switch again are forgotten."""


class Backlog:
    """Mutable: adding, taking and removing a job cost O(log n); nothing ever walks all jobs.

    Suspects stand by themselves, in their groups, because they run with no others.
    """

    def __init__(self, config: PolicyConfig | None = None, fairness: Fairness | None = None) -> None:
        """`fairness` outlives a backlog that is read anew; it has the window of `config`."""
        self.config = config or PolicyConfig()
        self.fairness = fairness or Fairness(window=self.config.grouping_window)
        self.outlook = FleetOutlook()
        self._jobs: dict[UUID, PendingJob] = {}
        self._lanes: dict[LaneName, Lane] = {}
        self._tenants: dict[str, TenantQueue] = {}
        self._shared: dict[tuple[int, Revision], KeyedQueue[Lane]] = {}
        self._hopeless: list[PendingJob] = []
        self._late: set[UUID] = set()
        self.num_jobs_of: Counter[Revision] = Counter()
        """Waiting jobs of each adapter that are no suspects."""
        self._switch_from: dict[str, float] = {}
        self.suspects = SuspectGroups()
        self.order = QueueOrder()
        self.by_rank: KeyedQueue[TenantQueue] = KeyedQueue(_rank)
        """All tenants with lanes, who got the least by its weight ahead."""
        self.by_class = tuple(KeyedQueue(_rank_in(priority)) for priority in range(NUM_CLASSES))
        """The same, of those with lanes of a class."""
        self.by_due: KeyedQueue[TenantQueue] = KeyedQueue(lambda tenant: _first_due(tenant, tenant.due))
        """All tenants with lanes without deadlines, the one with the longest overdue lane ahead."""
        self.by_deadline: KeyedQueue[TenantQueue] = KeyedQueue(
            lambda tenant: _first_due(tenant, tenant.dated)
        )
        """All tenants with lanes with deadlines, the one with the earliest ahead."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: UUID) -> bool:
        return job_id in self._jobs

    def jobs(self) -> list[PendingJob]:
        """List all that wait; for who looks into a failure, not for the loop."""
        return list(self._jobs.values())

    def get(self, job_id: UUID) -> PendingJob | None:
        """Find a waiting job."""
        return self._jobs.get(job_id)

    def add(self, job: PendingJob) -> bool:
        """Let a job wait; False if it waits already."""
        if job.job_id in self._jobs:
            return False
        self.fairness.take_back(job.job_id)
        self._enter(job)
        return True

    def _enter(self, job: PendingJob) -> None:
        self._jobs[job.job_id] = job
        self.order.add(job)
        if job.group is not None:
            self.suspects.add(job)
            return
        name = self._lane_name(job)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name, self._jobs)
            self._tenant_of(name).num_lanes += 1
        lane.push(job, self._place_of(job, name))
        self.num_jobs_of[job.revision] += 1
        if lane.head() is job or lane.num_jobs & (lane.num_jobs - 1) == 0:
            self.requeue(lane)

    def take(self, job_id: UUID) -> PendingJob | None:
        """Remove a job, because it is planned or has ended; None if it does not wait."""
        job = self._jobs.get(job_id)
        if job is None:
            return None
        self.order.remove(job)
        if job.group is not None:
            del self._jobs[job_id]
            self.suspects.remove(job)
            return job
        lane = self._lanes[self._lane_name(job)]
        was_head = lane.head() is job
        del self._jobs[job_id]
        lane.forget(job)
        self._late.discard(job_id)
        self.num_jobs_of[job.revision] -= 1
        if not self.num_jobs_of[job.revision]:
            del self.num_jobs_of[job.revision]
        if not lane.num_jobs:
            self._drop(lane)
        elif was_head and lane.name.has_deadlines:
            self.requeue(lane)  # the next head may have waited longer
        return job

    def plan(self, job: PendingJob) -> None:
        """Remove a job that goes to a worker, and charge its tenant."""
        self.take(job.job_id)
        self.fairness.charge(job)

    def has_tenant(self, tenant: str) -> bool:
        """Whether a tenant has jobs waiting that are no suspects."""
        return tenant in self._tenants

    def tenant_of(self, lane: Lane) -> TenantQueue:
        """Find the tenant of a lane that holds jobs."""
        return self._tenants[lane.name.tenant]

    def with_adapter(self, priority: int, revision: Revision) -> KeyedQueue[Lane] | None:
        """Find the lanes of a class and revision, of the tenant that got the least ahead."""
        return self._shared.get((priority, revision))

    def is_due(self, lane: Lane, now: float) -> bool:
        """Whether a lane's head has waited longer than its class may, or its deadline presses.

        How many turns the lane has had for such jobs is not asked.
        """
        head = lane.head()
        if head is None:
            return False
        if lane.name.has_deadlines:
            return not lane.name.is_late and presses(head, lane.head_at(), now)
        return head.waiting_since + self.config.starvation_s[head.priority] <= now

    def end_turn(self, lane: Lane, now: float) -> None:
        """Note that a lane has had a turn for its overdue jobs, so that others come before its next one.

        Those with deadlines have no such bound: they end by themselves if they wait too long.
        """
        lane.turn_at = now + self.config.starvation_s[lane.name.priority] / self.config.turns_per_bound

    def may_switch(self, incarnation: str, now: float) -> bool:
        """Whether a worker may load an adapter for the sake of an overdue job."""
        return self._switch_from.get(incarnation, now) <= now

    def note_switch(self, incarnation: str, num_bytes: int, now: float) -> None:
        """Note that a worker does so; the next one waits for ten times as long as the load takes."""
        pause_s = self.config.starvation_s[1] / self.config.switches_per_bound
        load_s = num_bytes / self.config.load_bytes_per_s
        self._switch_from[incarnation] = now + max(pause_s, LOADS_APART * load_s)
        if len(self._switch_from) > MAX_SWITCHES:
            self._switch_from = {name: at for name, at in self._switch_from.items() if at > now}

    def requeue(self, lane: Lane) -> None:
        """Put a lane where its head and its number of jobs belong, wherever it was set aside."""
        tenant = self._tenants.get(lane.name.tenant)
        if tenant is None or not lane.num_jobs:
            return
        tenant.push(lane)
        self._shared_of(lane).push(lane)
        self.requeue_tenant(tenant)

    def put_back(self, lane: Lane) -> None:
        """Put a lane among those of its adapter again."""
        if lane.num_jobs:
            self._shared_of(lane).push(lane)

    def requeue_tenant(self, tenant: TenantQueue) -> None:
        """Put a tenant where it belongs, wherever it was set aside."""
        self.by_rank.push(tenant)
        self.by_due.push(tenant)
        self.by_deadline.push(tenant)
        for priority in tenant.classes():
            self.by_class[priority].push(tenant)

    def discard_hopeless(self, lane: Lane, now: float) -> None:
        """Take the jobs at the head of a lane that cannot have their first token in time.

        Those that can, but whose answer would be late, wait behind all others from now on.
        """
        if not lane.name.has_deadlines:
            return
        while (job := lane.head()) is not None:
            if is_hopeless(job, now, self.outlook):
                self.take(job.job_id)
                self._hopeless.append(job)
            elif not lane.name.is_late and is_late(job, self.run_s(job), now):
                self.take(job.job_id)
                self._late.add(job.job_id)
                self._enter(replace(job))  # the lane knows its own jobs by identity
            else:
                return

    def take_hopeless(self) -> list[PendingJob]:
        """Return the jobs that were discarded since the last call: they are to be ended."""
        hopeless, self._hopeless = self._hopeless, []
        return hopeless

    def demand(self, limit: int) -> list[AdapterDemand]:
        """List the adapters that jobs wait for, the one whose turn comes first ahead; at most so many."""
        found: dict[str, AdapterDemand] = {}
        tenants, lanes = [], []
        while len(found) < limit and (tenant := self.by_rank.first()) is not None:
            self.by_rank.set_aside(tenant)
            tenants.append(tenant)
            for priority in tenant.classes():
                while len(found) < limit and (lane := tenant.first_of(priority)) is not None:
                    tenant.set_aside(lane)
                    lanes.append(lane)
                    _count(found, lane)
        for lane in lanes:
            self.requeue(lane)
        for tenant in tenants:
            self.requeue_tenant(tenant)
        return list(found.values())

    def _lane_name(self, job: PendingJob) -> LaneName:
        if self.config.policy == "fair":
            has_deadline, is_late = job.deadline_at is not None, job.job_id in self._late
            return LaneName(job.tenant, job.priority, job.revision, has_deadline, is_late)
        if self.config.policy == "grouped":
            return LaneName("", job.priority, job.revision)
        return LaneName("", 0, None)

    def _place_of(self, job: PendingJob, name: LaneName) -> float:
        """Tell what a job of a lane is ordered by: the time to start by, the deadline itself, or its age."""
        if job.deadline_at is None or not name.has_deadlines:
            return job.waiting_since
        return job.deadline_at if name.is_late else start_by(job.deadline_at, self.run_s(job))

    def run_s(self, job: PendingJob) -> float:
        """Tell how long a job is expected to be in its worker's hand; 0 is not known."""
        return self.outlook.output_token_s * self.fairness.lengths.expected(job)

    def _tenant_of(self, name: LaneName) -> TenantQueue:
        tenant = self._tenants.get(name.tenant)
        if tenant is None:
            self.fairness.arrive(name.tenant)
            tenant = self._tenants[name.tenant] = TenantQueue(self.fairness.share(name.tenant), self.config)
        return tenant

    def _shared_of(self, lane: Lane) -> KeyedQueue[Lane]:
        name = (lane.name.priority, lane.name.revision)
        queue = self._shared.get(name)
        if queue is None:
            queue = self._shared[name] = KeyedQueue(self._shared_key)
        return queue

    def _shared_key(self, lane: Lane) -> Key | None:
        head, tenant = lane.head(), self._tenants.get(lane.name.tenant)
        if head is None or tenant is None:
            return None
        return (tenant.share.rank, tenant.due_at(lane), head.admit_seq)

    def _drop(self, lane: Lane) -> None:
        name = lane.name
        del self._lanes[name]
        tenant, shared = self._tenants[name.tenant], self._shared[name.priority, name.revision]
        tenant.forget(lane)
        shared.set_aside(lane)
        if not shared:
            del self._shared[name.priority, name.revision]
        if not tenant.num_lanes:
            del self._tenants[name.tenant]
            for tenants in (self.by_rank, self.by_due, self.by_deadline, *self.by_class):
                tenants.set_aside(tenant)


def _rank(tenant: TenantQueue) -> Key | None:
    return (tenant.share.rank, tenant.share.tenant) if tenant.num_lanes else None


def _rank_in(priority: int) -> Callable[[TenantQueue], Key | None]:
    return lambda tenant: _rank(tenant) if tenant.first_of(priority) is not None else None


def _first_due(tenant: TenantQueue, lanes: KeyedQueue[Lane]) -> Key | None:
    lane = lanes.first()
    return None if lane is None else (tenant.due_at(lane), tenant.share.tenant)


def _count(found: dict[str, AdapterDemand], lane: Lane) -> None:
    head = lane.head()
    if head is None or head.revision is None:
        return
    before = found.get(head.revision)
    num_jobs = lane.num_jobs + (before.num_jobs if before else 0)
    found[head.revision] = AdapterDemand(head.revision, num_jobs, head.rank, head.adapter_bytes)
