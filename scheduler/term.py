"""Holds the leadership of a pool: takes the term, renews it on a thread of its own, gives it back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy.exc import DBAPIError

from db.database import Database
from db.judge import explain, sqlstate_of
from db.repositories.terms import TermRepository
from lorayard.process.service_thread import OnBroken, ServiceThread

RENEWALS_PER_TTL: Final = 4
LOCK_TIMEOUT: Final = "55P03"

logger = structlog.get_logger(__name__)


class Taken(NamedTuple):
    """A term that has begun, and the id of the ledger that gave it."""

    term: int
    ledger: UUID


class TermKeeper:
    """Mutable: one term. One that ran out may still be renewed, until another scheduler becomes leader."""

    def __init__(
        self,
        database: Database,
        pool: str,
        holder: str,
        taken: Taken,
        ttl_s: float,
        *,
        on_broken: OnBroken,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._pool = pool
        self._holder = holder
        self.term = taken.term
        self.ledger = taken.ledger
        self._ttl_s = ttl_s
        self._clock = clock
        self._valid_until = clock() + ttl_s
        self.num_lapses = 0
        """How often the term had run out when it was renewed: this process stood still, or the ledger did."""
        self._contact_since = clock()
        self.deposed = threading.Event()
        self._thread = ServiceThread("term", self._step, on_broken=on_broken)

    @classmethod
    def take(
        cls, database: Database, pool: str, holder: str, ttl_s: float, *, on_broken: OnBroken
    ) -> TermKeeper | None:
        """Become the leader if nobody is; None while another leads.

        A leader that was stopped in the middle of a transaction loses it once its term has run out.
        """
        try:
            taken = database.run(lambda connection: _take(TermRepository(connection), pool, holder, ttl_s))
        except DBAPIError as error:
            if sqlstate_of(error) != LOCK_TIMEOUT or not _evict(database, pool):
                raise
            taken = database.run(lambda connection: _take(TermRepository(connection), pool, holder, ttl_s))
        return None if taken is None else cls(database, pool, holder, taken, ttl_s, on_broken=on_broken)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    @property
    def is_valid(self) -> bool:
        """Whether nobody else can have become leader yet, by this process's clock."""
        return self._clock() < self._valid_until and not self.deposed.is_set()

    def contact_s(self) -> float:
        """How long the ledger has been answering without a break in this term.

        A term that ran out is a break: of the time in which this process stood still it knows nothing.
        """
        return self._clock() - self._contact_since if self.is_valid else 0.0

    def contact_lost(self) -> None:
        """Note that the ledger did not answer, whoever asked it."""
        self._contact_since = self._clock()

    def close(self, *, resign: bool) -> None:
        """Stop renewing; with `resign`, end the term at once."""
        self._thread.close(timeout_s=10.0)
        if resign and not self.deposed.is_set():
            self._resign()

    def _resign(self) -> None:
        try:
            self._database.run(
                lambda connection: TermRepository(connection).resign(self._pool, self._holder, self.term)
            )
        except Exception as error:  # noqa: BLE001 - the term ends by itself if it cannot be given back
            logger.warning("term.not_resigned", term=self.term, error=explain(error))

    def _step(self) -> None:
        if not self._thread.stopping.wait(self._ttl_s / RENEWALS_PER_TTL) and not self._renew():
            self.deposed.set()
            self._thread.stop()
            logger.warning("term.deposed", pool=self._pool, term=self.term)

    def _renew(self) -> bool:
        """Renew once; a ledger that does not answer says nothing about who leads."""
        asked_at = self._clock()
        try:
            renewed = self._database.run(
                lambda connection: TermRepository(connection).renew(
                    self._pool, self._holder, self.term, self._ttl_s
                )
            )
        except Exception as error:  # noqa: BLE001 - a thread that died of one would lose the leadership
            self.contact_lost()
            logger.warning("term.not_renewed", term=self.term, error=explain(error))
            return True
        if not self.is_valid:
            self.num_lapses += 1
            self.contact_lost()
        self._valid_until = asked_at + self._ttl_s
        return renewed


def _take(terms: TermRepository, pool: str, holder: str, ttl_s: float) -> Taken | None:
    term = terms.take(pool, holder, ttl_s)
    return None if term is None else Taken(term, terms.ledger_id())


def _evict(database: Database, pool: str) -> int:
    evicted = database.run(lambda connection: TermRepository(connection).evict(pool))
    if evicted:
        logger.warning("term.evicted", pool=pool, sessions=evicted)
    return evicted
