"""Removes the files of adapter revisions that nobody has used for as long as jobs are kept."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from db.repositories.adapters import AdapterRepository
from lorayard.process.service_thread import ServiceThread
from lorayard.server.adapter_store import is_store, revision_folder
from scheduler.leader_context import LeaderContext
from scheduler.outages import is_passing

SET_ASIDE: Final = ".collected-"
"""Before a folder's name while it is being removed: nobody who reads the store sees half of a revision."""

CLOSE_S: Final = 1.0
"""A store that hangs must not keep the next leader waiting."""

logger = structlog.get_logger(__name__)


class AdapterCollector:
    """Mutable: what the present sweep removes. `sweep` raises DatabaseUnavailable and Deposed.

    A revision goes through three sweeps: found unused, found unused for long enough (`collecting`), and then,
    under a lock that admission and `adapters add` take as well, out of the store (`collected`). The files are
    removed on a thread, because a store on a network may hang, which must not stop the leader.
    """

    def __init__(self, context: LeaderContext, store: Path | None, retention_s: float) -> None:
        self._context = context
        self._store = store
        self._retention_s = retention_s
        self._wake = threading.Condition()
        self._digests: Sequence[str] | None = None
        """What to remove; None between sweeps."""
        self._thread = ServiceThread(
            "adapter-files", self._step, on_broken=None, is_outage=_ends_sweep, wake=self._notify
        )

    @property
    def is_collecting(self) -> bool:
        """Whether the files of a sweep are still being removed."""
        return self._digests is not None

    def close(self) -> None:
        """Remove nothing more; the next leader goes on with what is left."""
        self._thread.close(CLOSE_S)

    def sweep(self) -> None:
        """Have what earlier sweeps marked removed, and mark what may go with the next one."""
        if self._retention_s == 0 or self._store is None:
            return
        if self.is_collecting:
            logger.warning("adapters.still_collecting", store=str(self._store))
            return
        pool = self._context.pool
        try:
            digests = self._context.transact(lambda c: AdapterRepository(c).collecting(pool))
            marked = self._context.transact(
                lambda c: AdapterRepository(c).mark_unused(pool, self._retention_s)
            )
        except SQLAlchemyError as error:
            logger.warning("adapters.not_marked", error=str(error))
            return
        for digest in marked:
            logger.info("adapter.collecting", revision=digest)
        with self._wake:
            self._digests = digests
            self._wake.notify_all()
        self._thread.start()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _step(self) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self.is_collecting or self._thread.stopping.is_set())
        if self._store is None or self._digests is None:
            return
        try:
            self._collect(self._store, self._digests)
        except Exception as error:
            if not _ends_sweep(error):
                raise
            logger.warning("adapters.not_collected", store=str(self._store), error=str(error))
        self._digests = None

    def _collect(self, store: Path, digests: Sequence[str]) -> None:
        if digests and not is_store(store):
            # A folder to mount upon. Were it believed, files would be forgotten, not gone.
            logger.warning("adapters.not_a_store", store=str(store), collecting=len(digests))
            return
        # What a leader that died had set aside is dealt with like the rest.
        left_over = [path.name.removeprefix(SET_ASIDE) for path in store.glob(f"{SET_ASIDE}*")]
        for digest in sorted({*digests, *(f"sha256:{name}" for name in left_over)}):
            if self._thread.stopping.is_set():
                return
            with self._thread.item(revision=digest):
                self.collect(store, digest)

    def collect(self, store: Path, digest: str) -> bool:
        """Remove the files of one revision unless somebody uses it; raises OSError, DatabaseError."""
        folder = revision_folder(store, digest)
        aside = store / f"{SET_ASIDE}{folder.name}"

        def take(connection: Connection) -> bool:
            adapters = AdapterRepository(connection)
            decision = adapters.lock_for_collection(digest)
            if decision == "collect":
                _move(folder, aside)
                adapters.set_collected(digest)
            elif decision == "keep":
                _move(aside, folder)
            return decision == "collect"

        try:
            is_collected = self._context.transact(take)
        except BaseException:
            _move(aside, folder)
            raise
        if aside.exists():
            shutil.rmtree(aside)
        if is_collected:
            logger.info("adapter.collected", revision=digest)
        return is_collected


def _ends_sweep(error: BaseException) -> bool:
    """Whether the store, the ledger or the term is to blame: rows stay as they are for the next sweep."""
    return isinstance(error, OSError) or is_passing(error)


def _move(source: Path, target: Path) -> None:
    """Rename a folder unless it is not there, or the other one is."""
    if source.exists() and not target.exists():
        source.rename(target)
