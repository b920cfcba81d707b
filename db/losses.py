"""Says what the end of a worker means for the jobs that it held, and for its host: pure, no SQL.

The jobs of a step that never came back are suspects: they run next in two halves, with no others, and only
one that dies alone is struck. A worker that vanishes tells nothing of its step: its jobs have one loss free.
A death is held against suspects or against the host, and on a host in doubt none is held against a job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID, uuid4

from db.records.workers import Canary, WorkerEnd

MAX_STRIKES: Final = 3
"""So many deaths of an engine that ran this job alone, and the job is dead."""

FREE_LOSSES: Final = 1
MAX_LOSSES: Final = 5
"""So many losses, on at least two hosts (one where the pool has one), and a suspect is dead."""

MAX_DEATHS: Final = 3
DEATHS_WITHOUT_AN_END: Final = 2
DOUBT_WINDOW: Final = timedelta(minutes=10)
PROVING_DEATHS: Final = 6
"""So many deaths in a row, each while the same job ran alone, are the job's fault: by then the pauses between
canaries, 75 s in all, have given other jobs the time to die there as well, and each that does clears it."""

FIRST_PAUSE_S: Final = 5.0
"""Before the second canary in a row; doubled for each one after it."""


@dataclass(frozen=True, slots=True)
class HostRecord:
    """How engines of one host have ended lately; a host is where workers of one name follow each other."""

    died_at: tuple[datetime, ...] = ()
    """The latest of them, oldest first, but for those before a canary that succeeded."""
    in_a_row: int = 0
    """Deaths that were held against the host since a job last succeeded there."""
    has_ended: bool = False
    """A job has succeeded there since the last death that was held against the host."""
    lone_job: UUID | None = None
    """What alone was running at the latest of the deaths `in_a_row`."""
    lone_deaths: int = 0
    """So many of them were its alone."""

    def excuses(self, now: datetime, lone_job: UUID | None) -> bool:
        """Whether a death says nothing of the jobs: the host is in doubt, and not for this one's sake alone.

        `lone_job` alone was running. Of a host that runs nothing else, nobody could ever say that it is
        sound.
        """
        is_proven = self.lone_deaths >= max(PROVING_DEATHS, self.in_a_row) and lone_job == self.lone_job
        return self.canary(now) is not None and not is_proven

    def canary(self, now: datetime) -> Canary | None:
        """Say why the host gets one job at a time, and how long it waits for it; None if it is sound."""
        recent = [at for at in self.died_at if now - at < DOUBT_WINDOW]
        if not recent or (len(recent) < MAX_DEATHS and self.in_a_row < DEATHS_WITHOUT_AN_END):
            return None
        died = f"its engine or worker died {len(recent)} times within {DOUBT_WINDOW.seconds // 60} minutes"
        if self.in_a_row >= DEATHS_WITHOUT_AN_END:
            died = f"its engine or worker died {self.in_a_row} times without one ended job"
        doublings = self.in_a_row - DEATHS_WITHOUT_AN_END - 1
        pause = timedelta(seconds=FIRST_PAUSE_S * 2 ** min(doublings, 16)) if doublings >= 0 else timedelta()
        wait = min(pause, DOUBT_WINDOW) - (now - recent[-1])
        return Canary(
            f"canary: {died}, so it gets one job at a time until one has succeeded; "
            "look at its log, its memory and its card",
            max(0.0, wait.total_seconds()),
        )

    def after_death(
        self, now: datetime, *, has_ended: bool, by_suspects: bool, lone_job: UUID | None = None
    ) -> HostRecord:
        """Add a death, of an incarnation in which a job `has_ended`, or that suspects alone may have caused.

        Suspects explain it if the host has ended jobs: without that, it may be the host that ends engines.
        `lone_job` alone was running.
        """
        died_at = () if has_ended and self.canary(now) else self.died_at
        in_a_row = 0 if has_ended else self.in_a_row
        if by_suspects and (has_ended or self.has_ended):
            return HostRecord(died_at, in_a_row, True, self.lone_job, self.lone_deaths)
        lone_deaths = 0 if lone_job is None else 1
        if lone_deaths and in_a_row and lone_job == self.lone_job:
            lone_deaths += self.lone_deaths
        died_at = (*died_at, now)[-MAX_DEATHS:]
        return HostRecord(died_at, in_a_row + 1, lone_job=lone_job, lone_deaths=lone_deaths)


class HeldJob(NamedTuple):
    """A job that was leased to a worker at its end."""

    job_id: UUID
    attempt: int
    strikes: int = 0
    losses: int = 0
    group: UUID | None = None  # suspects of one group run together, with no other job
    is_running: bool = False
    is_in_step: bool = False  # the engine was computing its rows, or adding it, when it died
    num_hosts: int = 1  # where it was lost, this one included


class Blame(NamedTuple):
    """What a job carries from then on; None leaves it as it is."""

    job_id: UUID
    attempt: int
    strikes: int | None = None
    losses: int | None = None
    group: UUID | None = None
    is_dead: bool = False
    is_struck: bool = False


def are_suspects(held: Sequence[HeldJob], end: WorkerEnd) -> bool:
    """Whether all that may have ended an engine was suspected of that before, or ran alone."""
    ran = held if end == "vanished" else [job for job in held if job.is_in_step]
    return bool(ran) and (all(job.group is not None for job in ran) or _is_alone(held))


def lone_job(held: Sequence[HeldJob], end: WorkerEnd) -> UUID | None:
    """Name the job that alone was running when its engine or its worker died, if it is known."""
    if end == "vanished":
        return held[0].job_id if len(held) == 1 and held[0].is_running else None
    is_known = end in ("engine_died", "engine_hung") and _is_alone(held)
    return next(job.job_id for job in held if job.is_in_step) if is_known else None


def blame(
    held: Sequence[HeldJob],
    end: WorkerEnd,
    *,
    is_canary: bool,
    is_only_host: bool,
    new_group: Callable[[], UUID] = uuid4,
) -> list[Blame]:
    """Judge the jobs that a worker held at such an `end`; `is_canary` if its host was in doubt.

    `is_only_host`: the pool has no other host, so losses on one are enough.
    """
    if is_canary or end in ("drained", "device_lost"):
        return [Blame(job.job_id, job.attempt) for job in held]
    if end in ("engine_died", "engine_hung"):
        return _blame_step(held, new_group)
    return _blame_loss(held, end, new_group, is_only_host=is_only_host)


def _blame_step(held: Sequence[HeldJob], new_group: Callable[[], UUID]) -> list[Blame]:
    """Suspect the rows of the step that never came back; strike the one that was alone in the engine."""
    suspects = [job for job in held if job.is_in_step]
    groups = _halves(suspects, new_group)
    is_alone = _is_alone(held)
    blamed = []
    for job in held:
        is_struck = job.is_in_step and is_alone
        strikes = job.strikes + is_struck
        group = groups.get(job.job_id)
        is_dead = strikes >= MAX_STRIKES
        blamed.append(Blame(job.job_id, job.attempt, strikes, None, group, is_dead, is_struck))
    return blamed


def _blame_loss(
    held: Sequence[HeldJob], end: WorkerEnd, new_group: Callable[[], UUID], *, is_only_host: bool
) -> list[Blame]:
    """Count a loss; the second makes a suspect. What a vanished worker ran nobody knows, so all count."""
    vanished = end == "vanished"
    lost = {job.job_id for job in held if vanished or job.is_running}
    suspects = [job for job in held if job.job_id in lost and (job.group or job.losses >= FREE_LOSSES)]
    groups = _halves(suspects, new_group)
    is_alone = vanished and len(held) == 1 and held[0].group is not None and held[0].is_running
    blamed = []
    for job in held:
        strikes, losses = job.strikes + is_alone, job.losses + (job.job_id in lost)
        group = groups.get(job.job_id)
        is_spent = losses >= MAX_LOSSES and group is not None and (job.num_hosts > 1 or is_only_host)
        is_dead = strikes >= MAX_STRIKES or is_spent
        blamed.append(Blame(job.job_id, job.attempt, strikes, losses, group, is_dead, is_alone))
    return blamed


def _is_alone(held: Sequence[HeldJob]) -> bool:
    """Whether one job was computed, and no other was in the engine."""
    ran = [job for job in held if job.is_running or job.is_in_step]
    return len(ran) == 1 and ran[0].is_in_step


def _halves(suspects: Sequence[HeldJob], new_group: Callable[[], UUID]) -> dict[UUID, UUID]:
    """Part suspects into two groups, or one if there is only one suspect."""
    in_order = sorted(job.job_id for job in suspects)
    middle = (len(in_order) + 1) // 2
    groups: dict[UUID, UUID] = {}
    for half in (in_order[:middle], in_order[middle:]):
        if half:
            groups |= dict.fromkeys(half, new_group())
    return groups
