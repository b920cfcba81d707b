"""A discrete-event simulation of a pool: a leader with a policy, workers who tell it late what they did."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from benchmarks.policies.goals import Pool
from benchmarks.policies.hardware import Hardware
from benchmarks.policies.policy import Policy, Setting
from benchmarks.policies.worker import Worker
from benchmarks.policies.workload import Adapter, Job
from scheduler.policies import ServiceRate, WorkerCapacity, WorkerView, low_water, target_seqs

OVERCOMMIT_S: Final = 0.5
"""The default of `LORAYARD_OVERCOMMIT_S`."""
WAITING_TURN_S: Final = 0.020
"""With jobs waiting and room on a worker, the leader looks again after this, though nothing arrives."""
HINT_EVERY_S: Final = 0.5


@dataclass(slots=True, eq=False)
class Outstanding:
    """Mutable: what the leader knows of one worker."""

    worker: Worker
    num_jobs: int = 0
    num_tokens: int = 0
    revisions: dict[str, int] = field(default_factory=dict)
    rate: ServiceRate = field(default_factory=ServiceRate)

    def count(self, job: Job, step: int) -> None:
        """Add a job, or take it off."""
        name = job.adapter.name
        self.num_jobs += step
        self.num_tokens += step * (job.prompt_tokens + job.max_tokens)
        self.revisions[name] = self.revisions.get(name, 0) + step
        if not self.revisions[name]:
            del self.revisions[name]


class Simulator:
    """Mutable: one run. Equal arguments give equal runs, whatever the machine.

    Arrivals reach the backlog `admit_s` after their submission, dispatched jobs their worker after
    `dispatch_s`, ends the leader after `report_s`; it plans `turn_s` after the first news since its last
    round. It sees at once where adapters are. Jobs whose deadline passes before their first token expire.
    """

    def __init__(
        self,
        pool: Pool,
        hardware: Hardware,
        adapters: Iterable[Adapter],
        make_policy: Callable[[Setting], Policy],
        *,
        replenish: Callable[[float], Job] | None = None,
    ) -> None:
        """`adapters` are warm on the workers in turn, as far as they fit; `replenish` keeps the backlog."""
        self.pool = pool
        self.hardware = hardware
        self.now = 0.0
        self.num_events = 0
        self.workers = [
            Worker(index, pool, hardware, self.at, self._report) for index in range(pool.num_workers)
        ]
        self.jobs: list[Job] = []
        """All that were submitted."""
        self.ended: list[Job] = []
        """In the order in which the leader heard of them; expired ones are among them."""
        self.num_batches = 0
        self.plan_s = 0.0
        """Processor time of the policy's decisions."""
        self.on_dispatch: Callable[[Job, float], None] | None = None
        self._adapters = {adapter.name: adapter for adapter in adapters}
        names = tuple(worker.name for worker in self.workers)
        self.policy = make_policy(Setting(pool, hardware, names, self._adapters))
        self._replenish = replenish
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._num_scheduled = 0
        self._round_at = float("inf")
        self._hint_at = 0.0
        self._deadlines: list[tuple[float, int, Job]] = []
        self._state = {worker.name: Outstanding(worker) for worker in self.workers}
        self._capacity = WorkerCapacity(
            max_num_seqs=pool.max_num_seqs,
            kv_tokens=pool.kv_tokens,
            max_model_len=pool.max_model_len,
            max_loras=pool.slots,
            max_lora_rank=max(pool.ranks),
        )
        self._warm()

    def at(self, when: float, action: Callable[[float], None]) -> None:
        """Call a function with the time, once it has come; of one time, in the order of these calls."""
        self._num_scheduled += 1
        heapq.heappush(self._heap, (when, self._num_scheduled, action))

    def submit(self, jobs: Iterable[Job]) -> None:
        """Let jobs arrive at their times."""
        for job in jobs:
            self.jobs.append(job)
            self.at(job.submitted_at + self.hardware.admit_s, lambda now, job=job: self._admit(job, now))  # type: ignore[misc]

    def run(self, *, until: float = float("inf"), num_ended: int | None = None) -> None:
        """Go on until nothing happens any more, to a time, or until so many jobs have ended in all."""
        heap = self._heap
        while heap and heap[0][0] <= until and (num_ended is None or len(self.ended) < num_ended):
            self.now, _, action = heapq.heappop(heap)
            self.num_events += 1
            action(self.now)
        if until != float("inf"):
            self.now = max(self.now, until)

    def views(self) -> list[WorkerView]:
        """Show the workers as the leader sees them."""
        return [self._view(state) for state in self._state.values()]

    def change_leader(self) -> None:
        """Let a new leader take over what waits; ends that are on their way reach it."""
        self.policy = self.policy.succeed(self.now)

    def _warm(self) -> None:
        """Give workers the adapters in turn, so that the pool's hosts hold as many as they can, each once.

        With slots for all, every worker has all.
        """
        adapters = list(self._adapters.values())
        for index, worker in enumerate(self.workers):
            own = adapters if self.pool.slots >= len(adapters) else adapters[index :: len(self.workers)]
            worker.residency.warm(reversed(own[: self.pool.host_adapters]), reversed(own[: self.pool.slots]))

    def _admit(self, job: Job, now: float) -> None:
        self.policy.add(job, now)
        if job.deadline_at is not None:
            heapq.heappush(self._deadlines, (job.deadline_at, job.number, job))
        self._wake(now + self.hardware.turn_s)

    def _report(self, worker: Worker, jobs: list[Job], now: float) -> None:
        self.at(now + self.hardware.report_s, lambda now: self._hear(worker, jobs, now))

    def _hear(self, worker: Worker, jobs: list[Job], now: float) -> None:
        state = self._state[worker.name]
        for job in jobs:
            state.count(job, -1)
        state.rate.observe(len(jobs), now)
        self.ended += jobs
        self.policy.ended(worker.name, jobs, now)
        self._wake(now + self.hardware.turn_s)

    def _wake(self, when: float) -> None:
        if when < self._round_at:
            self._round_at = when
            self.at(when, self._round)

    def _round(self, now: float) -> None:
        if now != self._round_at:
            return  # an earlier one was asked for since
        self._round_at = float("inf")
        self._expire(now)
        if not len(self.policy) or not any(map(self._has_room, self._state.values())):
            return
        views = self.views()
        began = time.process_time()
        planned = self.policy.plan(views, now)
        self.plan_s += time.process_time() - began
        for job in self.policy.take_refused():
            job.is_expired = True
            self.ended.append(job)
        for worker, jobs in planned:
            self._dispatch(self._state[worker], jobs, now)
        if now >= self._hint_at:
            self._hint_at = now + HINT_EVERY_S
            self._hint(now)
        if planned:
            self._wake(now + self.hardware.turn_s)
        elif self.policy.is_timed:
            self._wake(now + WAITING_TURN_S)

    def _dispatch(self, state: Outstanding, jobs: list[Job], now: float) -> None:
        self.num_batches += 1
        for job in jobs:
            assert job.dispatched_at is None, "a job is dispatched once"
            job.dispatched_at = now
            job.worker = state.worker.index
            state.count(job, 1)
            if self.on_dispatch is not None:
                self.on_dispatch(job, now)
        assert len(state.revisions) <= self.pool.slots, "more adapters outstanding than slots"
        self.at(now + self.hardware.dispatch_s, lambda now: state.worker.receive(jobs, now))
        if self._replenish is not None:
            for _ in jobs:
                job = self._replenish(now)
                self.jobs.append(job)
                self.policy.add(job, now)

    def _hint(self, now: float) -> None:
        for worker, prefetch, drop in self.policy.hints(self.views(), now):
            wanted = [self._adapters[name] for name in prefetch]
            self._state[worker].worker.residency.follow(wanted, drop, now)

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            job = heapq.heappop(self._deadlines)[2]
            if job.dispatched_at is None and not job.is_expired:
                self.policy.remove(job)
                job.is_expired = True
                self.ended.append(job)

    def _view(self, state: Outstanding) -> WorkerView:
        residency = state.worker.residency
        return WorkerView(
            incarnation=state.worker.name,
            capacity=self._capacity,
            target_seqs=self._target(state),
            num_outstanding=state.num_jobs,
            outstanding_tokens=state.num_tokens,
            outstanding_revisions=dict(state.revisions),
            # Sets of strings have another order in every process; a dict keeps runs the same.
            device=dict.fromkeys(residency.slots),
            host=dict.fromkeys(residency.host),
        )

    def _target(self, state: Outstanding) -> int:
        return target_seqs(self.pool.max_num_seqs, state.rate.per_s(self.now), OVERCOMMIT_S)

    def _has_room(self, state: Outstanding) -> bool:
        return state.num_jobs < low_water(self.pool.max_num_seqs, self._target(state))
