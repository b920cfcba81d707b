"""Groups jobs by adapter inside what fairness allows: resident adapters first, nobody starved.

One round goes through the backlog in this order, and stops when no worker has room:

1. suspects, each group by itself on an empty worker;
2. while there is room, those tenants that are less than one window ahead of who got the least. Of their jobs
   a. those that waited longer than their class may, or whose deadline presses, whatever their adapter;
   b. for each class: lanes whose adapter is on a device, then in a host cache, then the most worth loading.

A tenant none of whose jobs finds room is passed over; one that has fallen back by a window has a
slot come free. The policy `grouped` is the same with all jobs as one tenant's, and deadlines only obeyed.

A worker whose host is in doubt takes part with one job. It gets a suspect only after all else, and only one
that no other worker could run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from scheduler.policies.backlog import Backlog
from scheduler.policies.keyed_queue import KeyedQueue
from scheduler.policies.lane import Lane
from scheduler.policies.placement import best_worker, is_admitted, is_spread, make_room
from scheduler.policies.suspect_turns import plan_lone_suspects, plan_suspects
from scheduler.policies.tenant_queue import NUM_CLASSES, TenantQueue
from scheduler.policies.types import PendingJob, PlannedBatch, Revision, WorkerView
from scheduler.policies.worker_budget import AdapterTier, WorkerBudget

MAX_HELD_UP: Final = 4
"""Tenants that find no room before what is left goes to whoever can use it: slots or tokens are missing."""

MAX_BARRED: Final = 4
"""Adapters of a worker that make room at a time for the sake of deadlines.

A slot comes free only with the last job of its adapter, and what is due soon cannot wait for one by one.
"""

MAX_BLOCKED: Final = 8
"""Lanes of one resident adapter that find no room before others are looked at: mostly all will find none."""


def plan_coalesced(backlog: Backlog, views: Sequence[WorkerView], now: float) -> list[PlannedBatch]:
    """Take jobs out of the backlog for every worker with room; at most one micro-batch each.

    `now` is the monotonic clock that the jobs' `waiting_since` was read from.
    """
    if not len(backlog):
        return []
    lengths = backlog.fairness.lengths
    workers = [WorkerBudget(view, backlog.config.max_batch_jobs, lengths) for view in views]
    if not any(worker.is_open for worker in workers):
        return []
    sound = [worker for worker in workers if not worker.view.is_canary]
    plan_suspects(backlog, sound)
    _Round(backlog, workers, now).plan()
    plan_lone_suspects(backlog, [worker for worker in workers if worker.view.is_canary], sound)
    return [worker.batch() for worker in workers if worker.planned]


LanesOf = Callable[[TenantQueue], KeyedQueue[Lane]]


class _Round:
    """Mutable: what one round has left of the workers, and whom it has passed over."""

    def __init__(self, backlog: Backlog, workers: Sequence[WorkerBudget], now: float) -> None:
        self._backlog = backlog
        self._workers = workers
        self._open = [worker for worker in workers if worker.is_open]
        self._now = now
        self._limit = 0.0

    def plan(self) -> None:
        """Serve tenants until no worker has room, or nobody finds any."""
        backlog, aside = self._backlog, list[TenantQueue]()
        num_held_up = 0
        while self._has_room() and len(aside) < backlog.config.max_set_aside:
            tenant = backlog.by_rank.first()
            if tenant is None:
                break
            rank = tenant.share.rank
            is_last = len(backlog.by_rank) == 1 or num_held_up == MAX_HELD_UP
            self._limit = float("inf") if is_last else rank + backlog.config.grouping_window
            if self._serve_window():
                backlog.fairness.serve(rank)
                continue
            if is_last:
                break
            backlog.by_rank.set_aside(tenant)
            aside.append(tenant)
            num_held_up += self._hold_up(tenant)
        for tenant in aside:
            backlog.by_rank.push(tenant)

    def _serve_window(self) -> int:
        """Give those within the window one look each; returns how many jobs found room."""
        placed = self._serve_due(self._backlog.by_deadline, lambda tenant: tenant.dated)
        if any(self._backlog.may_switch(worker.view.incarnation, self._now) for worker in self._open):
            placed += self._serve_due(self._backlog.by_due, lambda tenant: tenant.due)
        for priority in range(NUM_CLASSES):
            if self._backlog.by_class[priority].first() is None:
                continue
            placed += self._serve_resident(priority, AdapterTier.DEVICE)
            placed += self._serve_resident(priority, AdapterTier.HOST)
            placed += self._serve_cold(priority)
        return placed

    def _serve_due(self, tenants: KeyedQueue[TenantQueue], lanes_of: LanesOf) -> int:
        """Give lanes with due jobs their turns; if one finds no room, make some before others get it."""
        limit, aside = self._backlog.config.max_set_aside, list[TenantQueue]()
        placed = num_held_up = 0
        while self._has_room() and num_held_up < limit and len(aside) < limit:
            tenant = tenants.first()
            lane = None if tenant is None else lanes_of(tenant).first()
            if tenant is None or lane is None or not self._is_next(tenant, lane):
                break
            if self._is_within(tenant):
                found, held_up = self._serve_due_of(tenant, lanes_of(tenant))
                placed, num_held_up = placed + found, num_held_up + held_up
            tenants.set_aside(tenant)
            aside.append(tenant)
        for tenant in aside:
            tenants.push(tenant)
        return placed

    def _serve_due_of(self, tenant: TenantQueue, lanes: KeyedQueue[Lane]) -> tuple[int, int]:
        """Serve a tenant's due lanes; returns how many jobs found room, and how many lanes did not."""
        aside: list[Lane] = []
        placed = num_held_up = 0
        while (
            self._has_room() and num_held_up < self._backlog.config.max_set_aside and self._is_within(tenant)
        ):
            lane = lanes.first()
            if lane is None or not self._is_next(tenant, lane):
                break
            if found := self._take_turn(lane):
                placed += found
                continue
            if job := lane.head():
                is_dated = lane.name.has_deadlines
                make_room(job, self._able_to_switch(lane), MAX_BARRED if is_dated else 1)
                num_held_up += is_admitted(self._workers, job)
            lanes.set_aside(lane)
            aside.append(lane)
        for lane in aside:
            lanes.push(lane)
        return placed, num_held_up

    def _is_next(self, tenant: TenantQueue, lane: Lane) -> bool:
        """Whether the first lane of a queue of due ones has its turn now."""
        if lane.name.has_deadlines:
            return self._backlog.is_due(lane, self._now)
        due_at = tenant.due_at(lane)
        return due_at is not None and due_at <= self._now

    def _take_turn(self, lane: Lane) -> int:
        """Place a few overdue jobs of a lane; returns how many."""
        left = 1 if lane.name.has_deadlines else self._backlog.config.turn_jobs

        def choose(job: PendingJob) -> WorkerBudget | None:
            nonlocal left
            left -= 1
            is_next = left >= 0 and self._backlog.is_due(lane, self._now)
            return best_worker(self._able_to_switch(lane), job) if is_next else None

        head = lane.head()
        cold = [worker for worker in self._open if worker.tier(lane.name.revision) is AdapterTier.COLD]
        placed = self._drain(lane, choose)
        if placed:
            self._backlog.end_turn(lane, self._now)
        for worker in cold:
            if head is not None and lane.name.revision in worker.revisions:
                self._backlog.note_switch(worker.view.incarnation, head.adapter_bytes, self._now)
        return placed

    def _able_to_switch(self, lane: Lane) -> list[WorkerBudget]:
        """List who may run a due job: who has its adapter, or may load it.

        What one has is not loaded by another too soon; and for overdue jobs nothing is loaded too often.
        """
        revision, may_switch = lane.name.revision, self._backlog.may_switch
        is_spread = self._is_spread(lane)
        return [
            worker
            for worker in self._open
            if worker.tier(revision) is not AdapterTier.COLD
            or (is_spread and may_switch(worker.view.incarnation, self._now))
        ]

    def _is_spread(self, lane: Lane) -> bool:
        job = lane.head()
        if job is None:
            return False
        load_s = job.adapter_bytes / self._backlog.config.load_bytes_per_s
        patience_s = job.waiting_since + load_s - self._now
        return is_spread(self._workers, job, lane.num_jobs, patience_s)

    def _serve_resident(self, priority: int, tier: AdapterTier) -> int:
        """Fill workers with jobs whose adapter they have at hand, lanes with the oldest head first."""
        queues = [
            queue
            for revision in self._at_hand(tier)
            if (queue := self._backlog.with_adapter(priority, revision)) is not None
        ]
        placed = 0
        for queue in sorted(queues, key=_head_order):
            placed += self._serve_holders(queue, tier)
        return placed

    def _serve_holders(self, queue: KeyedQueue[Lane], tier: AdapterTier) -> int:
        """Drain the lanes of one adapter, of the tenant that got the least first."""
        aside: list[Lane] = []
        placed = 0
        while self._has_room() and len(aside) < MAX_BLOCKED and (lane := queue.first()) is not None:
            if not self._is_within(self._backlog.tenant_of(lane)):
                break
            placed += self._drain(lane, lambda job: best_worker(self._open, job, tier))
            if lane.num_jobs and self._is_within(self._backlog.tenant_of(lane)):
                self._keep_to_residents(lane)
                queue.set_aside(lane)
                aside.append(lane)
        for lane in aside:
            self._backlog.put_back(lane)
        return placed

    def _keep_to_residents(self, lane: Lane) -> None:
        """Bring no adapter to workers that lack tokens for a job whose adapter they have.

        What is left of the cache would go to small jobs of ever other adapters, at a load each.
        """
        if (job := lane.head()) is None:
            return
        for worker in self._open:
            if worker.tier(job.revision) is not AdapterTier.COLD and not worker.has_tokens(job):
                worker.keeps_to_residents = True

    def _at_hand(self, tier: AdapterTier) -> set[Revision]:
        """Name the adapters that jobs wait for and some worker has in a tier, with a slot for it."""
        waiting = self._backlog.num_jobs_of
        names: set[Revision] = {None} if tier is AdapterTier.DEVICE else set()
        for worker in self._open:
            if worker.is_open:
                names.update(revision for revision in worker.at_hand(tier) if revision in waiting)
        return names

    def _serve_cold(self, priority: int) -> int:
        """Bring in adapters that no worker has, or too few, for who got the least first."""
        backlog, aside = self._backlog, list[TenantQueue]()
        tenants = backlog.by_class[priority]
        lanes: list[Lane] = []
        placed = 0
        while self._takers() and len(aside) < backlog.config.max_set_aside:
            tenant = tenants.first()
            if tenant is None or not self._is_within(tenant):
                break
            placed += self._bring_in(tenant, priority, lanes)
            tenants.set_aside(tenant)
            aside.append(tenant)
        for lane in lanes:
            backlog.requeue(lane)
        for tenant in aside:
            backlog.requeue_tenant(tenant)
        return placed

    def _bring_in(self, tenant: TenantQueue, priority: int, aside: list[Lane]) -> int:
        """Place a tenant's jobs of a class on workers that load their adapters."""
        placed = num_held_up = 0
        while (
            self._is_within(tenant)
            and num_held_up < self._backlog.config.max_set_aside
            and (takers := self._takers())
            and (lane := tenant.first_of(priority)) is not None
        ):
            if self._is_spread(lane):
                placed += self._drain(lane, partial(best_worker, takers))
            if job := lane.head():
                num_held_up += is_admitted(self._workers, job)
                tenant.set_aside(lane)
                aside.append(lane)
        return placed

    def _takers(self) -> list[WorkerBudget]:
        """List the workers that take another adapter."""
        return [
            worker
            for worker in self._open
            if worker.is_open
            and not worker.keeps_to_residents
            and len(worker.revisions) < worker.view.capacity.max_loras
        ]

    def _drain(self, lane: Lane, choose: Callable[[PendingJob], WorkerBudget | None]) -> int:
        """Place jobs from the head of a lane until one finds no room; returns how many."""
        backlog, placed = self._backlog, 0
        backlog.discard_hopeless(lane, self._now)
        while (job := lane.head()) and self._is_within(backlog.tenant_of(lane)) and (worker := choose(job)):
            backlog.plan(job)
            worker.place(job)
            placed += 1
            backlog.discard_hopeless(lane, self._now)
        return placed

    def _is_within(self, tenant: TenantQueue) -> bool:
        return tenant.share.rank < self._limit

    def _hold_up(self, tenant: TenantQueue) -> bool:
        """Make room for a tenant that has fallen back by a window; returns whether it waits for room."""
        lane = tenant.dated.first() or tenant.due.first()
        job = None if lane is None else lane.head()
        if job is None:
            return False
        following = self._backlog.by_rank.first()
        if following is not None and following.share.rank >= self._limit:
            make_room(job, self._open)
        return is_admitted(self._workers, job)

    def _has_room(self) -> bool:
        return any(worker.is_open for worker in self._open)


def _head_order(queue: KeyedQueue[Lane]) -> tuple[bool, float, int]:
    lane = queue.first()
    head = None if lane is None else lane.head()
    if lane is None or head is None:
        return True, float("inf"), 0
    return lane.name.is_late, *head.order
