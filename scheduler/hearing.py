"""Judges whether a worker hears what is sent to its queue, by what it lists of it; the clock is passed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple
from uuid import UUID, uuid4

from db.records import JobAttempt

SILENT_S: Final = 10.0
"""A worker that sends no lists at all is deaf if a job has been on its way for so long."""

PING_EVERY_S: Final = 5.0
"""A ping may be lost like any message."""


class Unlisted(NamedTuple):
    """A job on its way: when its message went out, as which, and how long it may take."""

    pair: JobAttempt
    message: int
    dispatched_at: float
    patience_s: float
    is_excused: bool = False
    """Nobody knows whether its message went out, so its loss says nothing of the worker."""


class Missing(NamedTuple):
    """What has not arrived: `lost` by its own message, or `unheard` because the worker hears nothing."""

    lost: tuple[JobAttempt, ...] = ()
    excused: tuple[JobAttempt, ...] = ()
    unheard: tuple[JobAttempt, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lost or self.excused or self.unheard)


class Hearing:
    """Mutable: what one worker has been seen to receive. A deaf one gets nothing but pings, until it answers.

    The messages of a queue are read in turn. So of a deaf worker that answers after all, the first message
    that it did not list was lost or kept it from reading on, and only the jobs in that one are to blame.
    """

    def __init__(self, new_ping: Callable[[], UUID] = uuid4) -> None:
        self._new_ping = new_ping
        self.is_deaf = False
        """It gets nothing until it answers a ping."""
        self._heard = -1
        """The latest message that has been listed."""
        self._listed_at = float("-inf")
        self._since = float("-inf")
        """Before this, lists may have been missed."""
        self._patient_from = float("-inf")
        """What was on its way then has all its patience from then on."""
        self._pings: set[UUID] = set()
        self._pinged_at = float("-inf")
        self._doubted: frozenset[UUID] = frozenset()

    def begin(self, now: float) -> None:
        """Expect lists from now on: what came before says nothing of the jobs there are now."""
        self._listed_at, self._since = float("-inf"), now

    def begin_after_standstill(self, now: float) -> None:
        """Expect lists from now on, of which the first were written long ago."""
        self.begin(now)
        self._patient_from = now

    def heard(self, message: int) -> None:
        """Note that a job of this message was listed, or has ended there."""
        self._heard = max(self._heard, message)

    def listed(self, now: float) -> None:
        """Note that the worker has sent a list."""
        self._listed_at = now

    def missing(self, unlisted: Iterable[Unlisted], now: float) -> Missing:
        """Judge jobs that are on their way; once it is deaf, all of them come back."""
        unlisted = list(unlisted)
        overdue = [job for job in unlisted if self._is_overdue(job, now)]
        if not overdue:
            return Missing()
        is_silent = max(self._listed_at, self._since) <= now - SILENT_S
        unheard = [job for job in overdue if not job.is_excused and job.message > self._heard]
        if unheard or is_silent:
            first = min((job.message for job in unheard), default=None)
            self._doubted = frozenset(job.pair.job_id for job in unheard if job.message == first)
            self.is_deaf, self._pinged_at = True, float("-inf")
            return Missing(unheard=tuple(job.pair for job in unlisted))
        return Missing(
            lost=tuple(job.pair for job in overdue if not job.is_excused),
            excused=tuple(job.pair for job in overdue if job.is_excused),
        )

    def next_ping(self, now: float) -> UUID | None:
        """Name the ping that is to be sent now; None if none is."""
        if not self.is_deaf or now - self._pinged_at < PING_EVERY_S:
            return None
        self._pinged_at = now
        ping = self._new_ping()
        self._pings.add(ping)
        return ping

    def answered(self, ping: UUID) -> frozenset[UUID]:
        """Note an answer; returns the jobs whose message was lost although the worker hears.

        An answer to any ping of this deafness counts: each was sent after the jobs.
        """
        if ping not in self._pings:
            return frozenset()
        doubted = self._doubted
        self._doubted, self.is_deaf = frozenset(), False
        self._pings.clear()
        return doubted

    def _is_overdue(self, job: Unlisted, now: float) -> bool:
        """Whether a list is there that should name the job; if there are none, more time has passed."""
        due_at = max(job.dispatched_at, self._patient_from) + job.patience_s
        if self._listed_at >= due_at:
            return True
        return now >= max(due_at, max(job.dispatched_at, self._since) + SILENT_S)
