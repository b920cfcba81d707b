"""Chooses a worker for a job: residency first, then what the adapter costs there, then room.

The cost is that of CaraServe (Li et al., "CaraServe: CPU-Assisted and Rank-Aware LoRA Serving", 2024): an
adapter that is new to a running batch slows down every job in it by its bytes, one that is there already by
nothing. It goes to more workers than those that have it only when more jobs wait for it than they can run, or
when a job has waited for them as long as a load takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scheduler.policies.types import PendingJob
from scheduler.policies.worker_budget import AdapterTier, WorkerBudget


def best_worker(
    workers: Iterable[WorkerBudget], job: PendingJob, worst_tier: AdapterTier = AdapterTier.COLD
) -> WorkerBudget | None:
    """Choose a worker: the adapter nearest, then the least slowed down, then the most room, then by name."""
    best: WorkerBudget | None = None
    best_key: tuple[int, int, int, str] | None = None
    for worker in workers:
        tier = worker.tier(job.revision)
        if tier > worst_tier or (best_key is not None and tier > best_key[0]) or not worker.fits(job):
            continue
        key = (tier, _slow_down(worker, job), -worker.free_seqs, worker.view.incarnation)
        if best_key is None or key < best_key:
            best, best_key = worker, key
    return best


def is_spread(workers: Sequence[WorkerBudget], job: PendingJob, num_jobs: int, patience_s: float) -> bool:
    """Whether one more worker may load a job's adapter.

    So it is if none has it, or if more jobs wait than its holders run. Else the job waits for a holder for as
    long as the load would take, `patience_s` from now on: in the end, that costs at most twice the least
    (ski rental: Karlin et al., "Competitive snoopy caching", Algorithmica 3, 1988).
    """
    if patience_s <= 0:
        return True
    holders = [worker for worker in workers if worker.tier(job.revision) is not AdapterTier.COLD]
    able = [worker for worker in holders if worker.admits(job)]
    return not able or num_jobs > sum(worker.view.capacity.max_num_seqs for worker in able)


def is_admitted(workers: Iterable[WorkerBudget], job: PendingJob) -> bool:
    """Whether a job waits for room; one that no worker here could ever run must not hold up others."""
    return any(worker.admits(job) for worker in workers)


def make_room(job: PendingJob, workers: Iterable[WorkerBudget], max_barred: int = 1) -> None:
    """Choose one worker that will run the job, and stop feeding what stands in its way there.

    Slots are missing: the adapter with the fewest jobs outstanding gets no more, so its slot comes free.
    Tokens are missing: nobody gets any until the job fits. Each worker makes room for so many jobs at a time.
    """
    able = [
        worker
        for worker in workers
        if worker.is_open and len(worker.barred) < max_barred and worker.admits(job)
    ]
    blocked = next((worker for worker in able if worker.has_slot(job.revision)), None)
    if blocked is not None:
        blocked.closed = True
        return
    chosen = min(able, key=_jobs_of_victim, default=None)
    if chosen is not None and (victim := chosen.victim()) is not None:
        chosen.barred.add(victim)


def _jobs_of_victim(worker: WorkerBudget) -> tuple[int, str]:
    victim = worker.victim()
    return (worker.revisions[victim] if victim else 0, worker.view.incarnation)


def _slow_down(worker: WorkerBudget, job: PendingJob) -> int:
    """Tell how many more bytes of adapters all jobs of the worker read in each step, with the job.

    In powers of two: less than twice the bytes is no difference worth an uneven load.
    """
    if job.revision is None or job.revision in worker.revisions:
        return 0
    size = job.adapter_bytes or job.rank
    return (size * (worker.view.num_outstanding + len(worker.planned) + 1)).bit_length()
