"""Tells workers what to do beside running jobs: leave, give waiting jobs back, load adapters or drop them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import UUID

import structlog

from lorayard.contract.messages import Command
from scheduler.catalogue import Catalogue
from scheduler.fleet import Fleet
from scheduler.instructions import Instructions
from scheduler.leader_context import LeaderContext
from scheduler.policies import AdapterPlan, Backlog, WorkerView
from scheduler.queue_feed import QueueFeed
from scheduler.worker_state import Outstanding, WorkerState

REPEAT_DRAIN_S: Final = 2.0
"""A command may be lost with a Redis; a worker that drains already heeds no second one."""

REPEAT_ADAPTER_S: Final = 30.0
"""A load that was asked for has had its time: it may have found no place."""

RECALL_AFTER_S: Final = 1.0
"""Work ahead is about half a second: what waits for longer at a worker was misjudged."""

NO_LEAD_S: Final = 5.0
"""So long a worker gets no work ahead after it had to give some back."""

Lookahead = Callable[[Backlog, Sequence[WorkerView], float], Sequence[AdapterPlan]]
"""Foresees which adapters workers will need, at a monotonic time."""

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class WorkerCommands:
    """Mutable: what workers of one term were told lately; raises redis-py's errors."""

    context: LeaderContext
    catalogue: Catalogue
    instructions: Instructions
    fleet: Fleet
    queue: QueueFeed
    lookahead: Lookahead
    clock: Callable[[], float]
    _idle: frozenset[str] = frozenset()
    """Workers that had nothing to do at the last look."""
    _told: dict[tuple[str, str], float] = field(default_factory=dict)
    """When a worker was told of a revision, or to drain (an empty one)."""

    def send(self) -> None:
        """Look at all workers once; what fails for one of them keeps no other from its turn."""
        now, chore = self.clock(), self.context.items.chore
        self._told = {key: at for key, at in self._told.items() if now - at < REPEAT_ADAPTER_S}
        chore("drains", partial(self._drain, now))
        views = self.fleet.views(now)
        chore("recalls", partial(self._recall, views, now))
        chore("lookahead", partial(self._look_ahead, views, now))

    def _drain(self, now: float) -> None:
        for incarnation in self.instructions.draining:
            self.context.items.attempt(
                "worker_drain", incarnation, partial(self._drain_one, incarnation, now)
            )

    def _drain_one(self, incarnation: str, now: float) -> None:
        worker = self.fleet.find(incarnation)
        is_told = now - self._told.get((incarnation, ""), float("-inf")) < REPEAT_DRAIN_S
        if not is_told and not (worker and worker.is_draining):
            self._command(incarnation, "drain")
            self._told[incarnation, ""] = now

    def _recall(self, views: Sequence[WorkerView], now: float) -> None:
        idle = [view for view in views if _is_idle(view)]
        # Whoever was idle before has had its turn at the backlog since.
        still_idle = [view for view in idle if view.incarnation in self._idle]
        self._idle = frozenset(view.incarnation for view in idle)
        if not still_idle or not self.queue.is_plannable:
            return
        for worker, job_ids in recalls(still_idle, self.fleet.ready(), self.catalogue.rank, now):
            recall = partial(self._recall_from, worker, job_ids, now)
            self.context.items.attempt("worker_recall", worker.incarnation, recall)

    def _recall_from(self, worker: WorkerState, job_ids: Sequence[UUID], now: float) -> None:
        for job_id in job_ids:
            worker.outstanding[job_id].is_recalled = True
        worker.no_lead_until = now + NO_LEAD_S
        self._command(worker.incarnation, "recall", job_ids=tuple(job_ids))

    def _look_ahead(self, views: Sequence[WorkerView], now: float) -> None:
        for plan in self.lookahead(self.queue.backlog, views, now):
            work = partial(self._follow_one, plan, now)
            self.context.items.attempt("worker_adapters", plan.incarnation, work)

    def _follow_one(self, plan: AdapterPlan, now: float) -> None:
        """Tell a worker what is new to it; a plan may be of a picture that its own word has overtaken."""
        worker = self.fleet.find(plan.incarnation)
        if worker is None or not worker.knows_residency:
            return
        in_use = {job.revision for job in worker.outstanding.values()}
        wanted = [one for one in plan.prefetch if one not in worker.loaded and one not in in_use]
        if not (prefetch := self._untold(plan.incarnation, wanted, now)):
            return
        unwanted = [one for one in plan.drop if one in worker.loaded and one not in in_use]
        if drop := self._untold(plan.incarnation, unwanted[: worker.num_too_many(len(prefetch))], now):
            self._command(plan.incarnation, "drop", revisions=drop)
        self._command(plan.incarnation, "prefetch", revisions=prefetch)

    def _untold(self, incarnation: str, revisions: Sequence[str], now: float) -> tuple[str, ...]:
        news = tuple(one for one in revisions if (incarnation, one) not in self._told)
        self._told.update({(incarnation, one): now for one in news})
        return news

    def _command(self, incarnation: str, kind: str, **what: tuple[UUID, ...] | tuple[str, ...]) -> None:
        command = Command.model_validate({"kind": kind, "term": self.context.term, **what})
        self.context.command_worker(incarnation, command)
        told: Mapping[str, object] = {name: [str(one) for one in some[:20]] for name, some in what.items()}
        logger.info("worker.commanded", incarnation=incarnation, kind=kind, **told)


def recalls(
    idle: Sequence[WorkerView],
    workers: Sequence[WorkerState],
    rank_of: Callable[[str | None], int],
    now: float,
) -> list[tuple[WorkerState, list[UUID]]]:
    """Choose jobs that wait at a worker beyond what it can run at once, the latest first, for idle ones.

    A job is recalled once an attempt, and only if some idle worker could run it.
    """
    room = sum(view.capacity.max_num_seqs for view in idle)
    chosen: list[tuple[WorkerState, list[UUID]]] = []
    for worker in sorted(workers, key=lambda one: -(len(one.outstanding) - one.limits.max_num_seqs)):
        surplus = min(room, len(worker.outstanding) - worker.limits.max_num_seqs)
        if surplus <= 0:
            break
        waiting = [
            (job.dispatched_at, job_id)
            for job_id, job in worker.outstanding.items()
            if job.waits_there
            and not (job.is_recalled or job.is_suspect)
            and now - job.dispatched_at >= RECALL_AFTER_S
            and any(_could_run(view, job, rank_of(job.revision)) for view in idle)
        ]
        if job_ids := [job_id for _, job_id in sorted(waiting, reverse=True)[:surplus]]:
            chosen.append((worker, job_ids))
            room -= len(job_ids)
    return chosen


def _is_idle(view: WorkerView) -> bool:
    return not view.num_outstanding and not view.is_canary and not view.runs_alone


def _could_run(view: WorkerView, job: Outstanding, rank: int) -> bool:
    capacity = view.capacity
    has_place = job.revision is None or (capacity.max_loras > 0 and rank <= capacity.max_lora_rank)
    return has_place and job.revision not in view.cooling
