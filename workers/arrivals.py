"""Keeps what comes by Celery until the ledger says whose it is: a message may be late, a lease is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from db.judge import explain
from db.records import Aborts, JobAttempt
from lorayard.process.service_thread import OnBroken, ServiceThread
from workers.attempts import ActiveAttempt, StopReason

RETRY_S = 0.2

logger = structlog.get_logger(__name__)
AskAborts = Callable[[Sequence[JobAttempt]], Aborts]
"""Asks the ledger what of the given is cancelled or not this incarnation's; raises what Postgres does."""


class Arrivals:
    """One thread, which asks for all at once that came meanwhile; a ledger that is away is waited for.

    What an old leader sends when it wakes, or what a broker kept for a worker that was cut off, may have been
    leased to another long since: it never reaches the engine.
    """

    def __init__(
        self,
        ask_aborts: AskAborts,
        on_checked: Callable[[ActiveAttempt, StopReason | None], None],
        *,
        on_all_checked: Callable[[], None],
        on_broken: OnBroken,
    ) -> None:
        """`on_checked` is told why an attempt must not run, None if it is leased to this incarnation.

        After all that were asked for together, however that went, comes `on_all_checked`.
        """
        self._ask_aborts = ask_aborts
        self._on_checked = on_checked
        self._on_all_checked = on_all_checked
        self._wake = threading.Condition()
        self._waiting: dict[JobAttempt, ActiveAttempt] = {}
        self._is_failing = False
        self._thread = ServiceThread("arrivals", self._step, on_broken=on_broken, wake=self._rouse)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self) -> None:
        """Stop asking; what was not asked for is forgotten."""
        self._thread.close()

    def add(self, held: Sequence[ActiveAttempt]) -> None:
        """Have attempts checked; never blocks."""
        with self._wake:
            self._waiting.update((one.key, one) for one in held)
            self._wake.notify()

    def withdraw(self, key: JobAttempt) -> bool:
        """Take an attempt back; False if it was checked already."""
        with self._wake:
            return self._waiting.pop(key, None) is not None

    def _rouse(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _step(self) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._thread.stopping.is_set())
            group = list(self._waiting.values())
        if self._thread.stopping.is_set():
            return
        try:
            aborts = self._ask_aborts([held.key for held in group])
        except Exception as error:  # noqa: BLE001 - until the ledger answers, nothing is known of any of them
            if not self._is_failing:
                logger.warning("arrivals.not_checked", waiting=len(group), error=explain(error))
            self._is_failing = True
            self._thread.stopping.wait(RETRY_S)
            return
        self._is_failing = False

        def check(held: ActiveAttempt) -> None:
            if self.withdraw(held.key):
                self._on_checked(held, _refusal(held.key, aborts))

        try:
            self._thread.each(group, check, _ids)
        finally:
            self._on_all_checked()


def _ids(held: ActiveAttempt) -> dict[str, object]:
    return {"job_id": str(held.job.job_id), "attempt": held.job.attempt}


def _refusal(key: JobAttempt, aborts: Aborts) -> StopReason | None:
    if key in aborts.not_mine:
        logger.warning("job.came_late", job_id=str(key.job_id), attempt=key.attempt)
        return StopReason.FENCED
    return StopReason.CANCELLED if key.job_id in aborts.cancelled else None
