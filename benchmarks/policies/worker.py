"""A simulated worker: continuous batching, from one change of its batch to the next, no event per token."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from benchmarks.policies.goals import OUTPUT_WEIGHT, PROMPT_WEIGHT, Pool
from benchmarks.policies.hardware import Hardware
from benchmarks.policies.residency import Residency, Schedule
from benchmarks.policies.workload import Adapter, Job

_EPSILON = 1e-9


class Worker:
    """Mutable: jobs that wait for a place or an adapter, those that run, and the steps until one ends.

    A batch stays as it is for a number of equal steps; only the first of them reads the prompts of those who
    joined. What comes meanwhile joins at the end of the step that is under way. A sequence holds what it
    will have in the KV cache at its end from its beginning, so that none is ever preempted.
    """

    def __init__(
        self,
        index: int,
        pool: Pool,
        hardware: Hardware,
        at: Schedule,
        on_ended: Callable[[Worker, list[Job], float], None],
    ) -> None:
        self.index = index
        self.name = f"worker-{index:04}"
        self.residency = Residency(pool, hardware, at, self._poke)
        self.waiting: list[Job] = []
        self.running: list[tuple[int, int, Job]] = []
        """A heap by the step that each ends with."""
        self.order: list[Adapter] = []
        """The adapters of all jobs in the order they were dispatched."""
        self.service: dict[str, float] = {}
        """Of jobs that have ended, by tenant; see `served`."""
        self.num_steps = 0
        self.num_tokens = 0
        """Prompts' and answers', of jobs that have ended."""
        self._pool, self._hardware, self._at, self._on_ended = pool, hardware, at, on_ended
        self._active: dict[str, int] = {}
        self._sum_of_ranks = 0
        self._kv_tokens = 0
        self._began_at = self._prompt_s = self._step_s = 0.0
        self._num_planned = 0
        self._version = 0

    def receive(self, jobs: list[Job], now: float) -> None:
        """Take a micro-batch in."""
        for job in jobs:
            self.order.append(job.adapter)
            self.residency.use(job.adapter, now)
        self.waiting += jobs
        if any(job.adapter.name in self.residency.slots for job in jobs):
            self._poke(now)

    def served(self, now: float) -> dict[str, float]:
        """Return each tenant's service until now: weighted tokens, those of running sequences included."""
        service = dict(self.service)
        num_done = self.num_steps + (self._steps_until(now) if self.running else 0)
        for finish, _, job in self.running:
            tokens = job.output_tokens - max(0, finish - num_done)
            gained = PROMPT_WEIGHT * job.prompt_tokens + OUTPUT_WEIGHT * tokens
            service[job.tenant] = service.get(job.tenant, 0.0) + gained
        return service

    def _steps_until(self, now: float) -> int:
        elapsed = now - self._began_at - self._prompt_s
        return min(self._num_planned, max(0, int(elapsed / self._step_s + _EPSILON)))

    def _poke(self, now: float) -> None:
        """Let what waits join: now, or at the end of the step under way."""
        if not self.waiting or len(self.running) >= self._pool.max_num_seqs:
            return
        if not self.running:
            self._version += 1
            self._change(now, self._version)
            return
        elapsed = now - self._began_at - self._prompt_s
        num_steps = max(1, math.ceil(elapsed / self._step_s - _EPSILON))
        if num_steps < self._num_planned:
            self._plan_change(num_steps)

    def _plan_change(self, num_steps: int) -> None:
        self._num_planned = num_steps
        self._version = version = self._version + 1
        until = self._began_at + self._prompt_s + num_steps * self._step_s
        self._at(until, lambda now: self._change(now, version))

    def _change(self, now: float, version: int) -> None:
        """End those whose last token is there, let others join, and run on."""
        if version != self._version:
            return
        if self.running:
            self.num_steps += self._num_planned
        ended = self._end(now)
        prompt_tokens, is_cut = self._join(now, ended)
        if ended:
            self._on_ended(self, ended, now)
        if self.running:
            hardware = self._hardware
            self._began_at, self._prompt_s = now, prompt_tokens * hardware.prompt_token_s
            self._step_s = hardware.step_time_s(len(self.running), len(self._active), self._sum_of_ranks)
            self._plan_change(1 if is_cut else self.running[0][0] - self.num_steps)

    def _end(self, now: float) -> list[Job]:
        ended: list[Job] = []
        running = self.running
        while running and running[0][0] <= self.num_steps:
            job = heapq.heappop(running)[2]
            job.ended_at = now
            self._kv_tokens -= job.prompt_tokens + job.output_tokens
            self._deactivate(job.adapter)
            self.residency.release(job.adapter)
            self.num_tokens += job.prompt_tokens + job.output_tokens
            gained = PROMPT_WEIGHT * job.prompt_tokens + OUTPUT_WEIGHT * job.output_tokens
            self.service[job.tenant] = self.service.get(job.tenant, 0.0) + gained
            ended.append(job)
        return ended

    def _deactivate(self, adapter: Adapter) -> None:
        self._active[adapter.name] -= 1
        if not self._active[adapter.name]:
            del self._active[adapter.name]
            self._sum_of_ranks -= adapter.rank

    def _join(self, now: float, ended: list[Job]) -> tuple[int, bool]:
        """Start what waits, in order, passing over what lacks its adapter; returns the prompts' tokens.

        The second value says that prompts were left over which the next step has room for.
        """
        prompt_tokens = 0
        budget = self._hardware.max_num_batched_tokens - len(self.running)
        left: list[Job] = []
        is_full = is_cut = False
        for place, job in enumerate(self.waiting):
            if is_full or len(self.running) >= self._pool.max_num_seqs:
                left += self.waiting[place:]
                break
            if job.deadline_at is not None and job.deadline_at <= now:
                job.is_expired = True
                self.residency.release(job.adapter)
                ended.append(job)
            elif job.adapter.name not in self.residency.slots:
                left.append(job)
            elif prompt_tokens + job.prompt_tokens > budget:
                is_full = is_cut = True
                left.append(job)
            elif self._kv_tokens + job.prompt_tokens + job.output_tokens > self._pool.kv_tokens:
                is_full = True  # in order: a short one must not overtake a long one forever
                left.append(job)
            else:
                prompt_tokens += job.prompt_tokens
                self._start(job, now)
        self.waiting = left
        return prompt_tokens, is_cut

    def _start(self, job: Job, now: float) -> None:
        job.started_at = now
        job.finish_step = self.num_steps + job.output_tokens
        heapq.heappush(self.running, (job.finish_step, job.number, job))
        self._kv_tokens += job.prompt_tokens + job.output_tokens
        assert self._kv_tokens <= self._pool.kv_tokens, "more tokens than the KV cache has"
        name = job.adapter.name
        if name in self._active:
            self._active[name] += 1
        else:
            self._active[name] = 1
            self._sum_of_ranks += job.adapter.rank
