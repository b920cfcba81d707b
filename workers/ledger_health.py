"""Remembers how the ledger takes this worker's statements, and so whether the worker may take new work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from db.judge import Fault, explain, fault_of

logger = structlog.get_logger(__name__)


class LedgerHealth:
    """Mutable and thread-safe: which parts meet a wrong schema, and when the lease was last renewed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._refused_by_schema: set[str] = set()
        self._renewed_at = float("-inf")

    @property
    def takes_work(self) -> bool:
        """Whether the schema is this release's, as far as any statement has shown."""
        return not self._refused_by_schema

    def renewed(self) -> None:
        """Note that the lease was renewed: the ledger takes this worker's writes."""
        with self._lock:
            self._renewed_at = self._clock()

    def has_renewed_within(self, seconds: float) -> bool:
        """Whether the lease was renewed so recently."""
        with self._lock:
            return self._clock() - self._renewed_at <= seconds

    def served(self, part: str) -> None:
        """Note that a part of the worker got its answer."""
        with self._lock:
            healed = part in self._refused_by_schema
            self._refused_by_schema.discard(part)
        if healed:
            logger.info("ledger.schema_fits_again", part=part)

    def failed(self, part: str, error: Exception) -> None:
        """Note that a part of the worker got none; a wrong schema is said loudly, and stops new work."""
        if fault_of(error) is not Fault.SCHEMA:
            return
        with self._lock:
            is_new = part not in self._refused_by_schema
            self._refused_by_schema.add(part)
        if is_new:
            logger.critical("ledger.wrong_schema", part=part, error=explain(error))
