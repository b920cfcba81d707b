"""What the leader knows of one worker: its limits, the jobs it was given, the adapters it has at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import structlog

from db.records import Canary, JobAttempt, WorkerLimits
from lorayard.contract.messages import EndedJob, HeldJob, Residency
from lorayard.contract.states import JobState
from scheduler.deliveries import FIRST_PATIENCE_S
from scheduler.hearing import Hearing, Missing, Unlisted
from scheduler.policies import JobPace, ServiceRate, WorkerCapacity, WorkerView, target_seqs

MISSES: Final = 2

START_GROWTH: Final = 1.01
"""The fastest start is forgotten by so much with each job that was slower."""

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Outstanding:
    """Mutable: one job in a worker's hand, as far as the leader has been told."""

    attempt: int
    revision: str | None
    tokens: int
    is_suspect: bool
    dispatched_at: float
    message: int = 0
    """Number of the Celery message that carried it; of one dispatcher, they grow."""
    batch_id: UUID | None = None
    """Of the micro-batch in that message; None if a leader before this one sent it."""
    patience_s: float = FIRST_PATIENCE_S
    is_excused: bool = False
    """Taken over from the ledger: nobody knows whether its message went out."""
    was_listed: bool = False
    misses: int = 0
    waits_there: bool = False
    """Listed, and not begun by then."""
    is_recalled: bool = False


@dataclass(slots=True)
class WorkerState:
    """Mutable: one start of one worker; times are monotonic seconds of this process."""

    incarnation: str
    hostname: str
    limits: WorkerLimits
    store: str = ""
    """Where it reads adapters: host and path, of an earlier release's worker the host."""
    start_s: float | None = None
    """From its process's begin until it took jobs, as it said."""
    is_ready: bool = True
    is_draining: bool = False
    canary: Canary | None = None
    has_ended: bool = False
    """A job has succeeded here, which shows that the host is sound."""
    outstanding: dict[UUID, Outstanding] = field(default_factory=dict)
    device: set[str] = field(default_factory=set)
    host: set[str] = field(default_factory=set)
    residency_epoch: int = 0
    knows_residency: bool = False
    """It has told the whole of it once: from then on what is new there was loaded."""
    fastest_start_s: float | None = None
    """From dispatch to a first token, at the least; None until a job has ended here."""
    full_at: int | None = None
    """So many adapters it had when it gave one up; None if it never had to."""
    rate: ServiceRate = field(default_factory=ServiceRate)
    pace: JobPace = field(default_factory=JobPace)
    """That of all workers, by the tokens that jobs may come to."""
    output_pace: JobPace = field(default_factory=JobPace)
    """The same by the tokens that they wrote."""
    no_lead_until: float = float("-inf")
    """Before this it gets no work ahead: what it had of that, others were idle for."""
    hearing: Hearing = field(default_factory=Hearing)
    _revisions: Counter[str] = field(default_factory=Counter)
    _tokens: int = 0
    _num_suspects: int = 0

    def note_canary(self, canary: Canary | None) -> None:
        """Take over whether its host is in doubt."""
        if canary is not None and self.canary is None and not self.has_ended:
            logger.warning("worker.canary", incarnation=self.incarnation, reason=canary.reason)
        self.canary = canary

    def give(self, job_id: UUID, job: Outstanding) -> None:
        """Note that a job is on its way here."""
        if (before := self.outstanding.get(job_id)) is not None:
            self._count(before, -1)
        self.outstanding[job_id] = job
        self._count(job, 1)

    def take_back(self, pair: JobAttempt) -> bool:
        """Forget a job; False if it was not here at that attempt."""
        held = self.outstanding.get(pair.job_id)
        if held is None or held.attempt != pair.attempt:
            return False
        del self.outstanding[pair.job_id]
        self._count(held, -1)
        return True

    def clear(self) -> None:
        """Forget all jobs."""
        self.outstanding.clear()
        self._revisions.clear()
        self._tokens = self._num_suspects = 0

    def end(self, ended: Iterable[EndedJob], now: float) -> None:
        """Forget what the worker says it holds no longer."""
        num_ended = 0
        for job in ended:
            has_succeeded = job.state is JobState.SUCCEEDED
            self.has_ended |= has_succeeded
            held = self.outstanding.get(job.job_id)
            if held is None or not self.take_back(JobAttempt(job.job_id, job.attempt)):
                continue
            num_ended += 1
            in_hand_s = now - held.dispatched_at
            self.hearing.heard(held.message)
            if has_succeeded:
                self.pace.observe(held.tokens, in_hand_s, now)
            if has_succeeded and job.completion_tokens:
                self.output_pace.observe(job.completion_tokens, in_hand_s, now)
            if job.completion_tokens and not held.is_excused:
                self._learn_start(in_hand_s / job.completion_tokens)
        self.rate.observe(num_ended, now)

    def _learn_start(self, start_s: float) -> None:
        """Note how soon after its dispatch a job was done: its first token cannot have come later.

        The fastest counts, and is forgotten a little with each job, should the worker have become slower.
        """
        before = self.fastest_start_s
        self.fastest_start_s = start_s if before is None else min(start_s, before * START_GROWTH)

    def reconcile(self, held: Iterable[HeldJob], now: float) -> list[JobAttempt]:
        """Compare with the worker's own list; returns what it held before and has let go of."""
        listed = {(job.job_id, job.attempt): job.running for job in held}
        self.hearing.listed(now)
        let_go = []
        for job_id, job in self.outstanding.items():
            if (job_id, job.attempt) in listed:
                job.was_listed, job.misses = True, 0
                job.waits_there = not listed[job_id, job.attempt]
                self.hearing.heard(job.message)
            elif job.was_listed:
                job.misses += 1
                if job.misses >= MISSES:
                    let_go.append(JobAttempt(job_id, job.attempt))
        return let_go

    def listed_in(self, held: Iterable[HeldJob]) -> list[UUID]:
        """Name the jobs of a list that are here at the attempt that it names."""
        return [
            job.job_id
            for job in held
            if (known := self.outstanding.get(job.job_id)) and known.attempt == job.attempt
        ]

    def missing(self, now: float) -> Missing:
        """Judge what is on its way here; returns what has not arrived and will not."""
        return self.hearing.missing(
            (
                Unlisted(
                    JobAttempt(job_id, job.attempt),
                    job.message,
                    job.dispatched_at,
                    job.patience_s,
                    job.is_excused,
                )
                for job_id, job in self.outstanding.items()
                if not job.was_listed
            ),
            now,
        )

    @property
    def loaded(self) -> set[str]:
        """The revisions that it has in memory, which it need not read."""
        return self.device | self.host

    def note_residency(self, epoch: int, residency: Iterable[Residency], *, is_whole: bool) -> set[str]:
        """Take over where adapters are; returns what was loaded since the last picture.

        An older picture than that says nothing new.
        """
        if epoch < self.residency_epoch:
            return set()
        before = self.loaded
        self.residency_epoch = epoch
        if is_whole:
            self.device.clear()
            self.host.clear()
        for place in residency:
            self.device.discard(place.revision)
            self.host.discard(place.revision)
            if place.tier != "none":
                (self.device if place.tier == "device" else self.host).add(place.revision)
        if before - self.loaded:
            self.full_at = max(self.full_at or 0, len(before))
        is_known, self.knows_residency = self.knows_residency, self.knows_residency or is_whole
        return self.loaded - before if is_known else set()

    def num_too_many(self, num_new: int) -> int:
        """Tell how many adapters must go for so many new ones, as far as it has been seen to be full."""
        return 0 if self.full_at is None else max(0, len(self.loaded) + num_new - self.full_at)

    def can_load(self, rank: int) -> bool:
        """Whether it would read an adapter of this rank if it were given a job of it."""
        limits = self.limits
        return (
            self.is_ready and not self.is_draining and limits.max_loras > 0 and rank <= limits.max_lora_rank
        )

    def view(
        self, now: float, *, max_model_len: int, overcommit_s: float, cooling: Collection[str] = ()
    ) -> WorkerView:
        """Show the worker to the policies.

        Prompt lengths are estimates, so the pool's limit stands for the worker's: it counts exactly.
        `cooling` is what its store is not asked for; what it has in memory it can run all the same.
        """
        limits, canary = self.limits, None if self.has_ended else self.canary
        lead_s = 0.0 if now < self.no_lead_until else overcommit_s
        return WorkerView(
            incarnation=self.incarnation,
            capacity=WorkerCapacity(
                max_num_seqs=limits.max_num_seqs,
                kv_tokens=limits.num_kv_blocks * limits.block_size,
                max_model_len=max_model_len,
                max_loras=limits.max_loras,
                max_lora_rank=limits.max_lora_rank,
            ),
            target_seqs=target_seqs(limits.max_num_seqs, self.rate.per_s(now), lead_s),
            num_outstanding=len(self.outstanding),
            outstanding_tokens=self._tokens,
            outstanding_revisions=dict(self._revisions),
            device=self.device,
            host=self.host,
            cooling=set(cooling) - self.loaded if cooling else (),
            runs_alone=self._num_suspects > 0,
            is_canary=canary is not None,
            canary_wait_s=canary.wait_s if canary is not None else 0.0,
        )

    def _count(self, job: Outstanding, step: int) -> None:
        """Keep the sums that every view shows."""
        self._tokens += step * job.tokens
        self._num_suspects += step * job.is_suspect
        if job.revision is not None:
            self._revisions[job.revision] += step
            if not self._revisions[job.revision]:
                del self._revisions[job.revision]
