"""Publishes in Redis what clients go by: the room left, the pool, its adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lorayard.contract.keys import POOLS_KEY
from lorayard.contract.pool import PoolInfo
from scheduler.catalogue import Catalogue
from scheduler.catalogue_mirror import CatalogueMirror
from scheduler.fleet import Fleet
from scheduler.leader_context import LeaderContext
from scheduler.queue_feed import QueueFeed
from scheduler.settings import SchedulerSettings

RETRY_SHARE: Final = 0.05
"""Who met a full backlog is asked back when so much of it will have drained."""

MIN_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 60.0


class AdmissionPublisher:
    """The publications of one term; raises redis-py's errors, DatabaseUnavailable and Deposed."""

    def __init__(
        self,
        context: LeaderContext,
        settings: SchedulerSettings,
        info: PoolInfo,
        catalogue: Catalogue,
        fleet: Fleet,
        queue: QueueFeed,
        clock: Callable[[], float],
    ) -> None:
        self._context = context
        self._settings = settings
        self._info = info
        self._catalogue = catalogue
        self._fleet = fleet
        self._queue = queue
        self._clock = clock
        self._figures = context.script("publish_figures")
        self._mirror = CatalogueMirror(context)
        self._pool = context.script("publish_pool")

    @property
    def catalogue_version(self) -> int:
        """The version of the catalogue that the ledger had at the last look."""
        return self._catalogue.version

    def publish(self) -> None:
        """Publish the figures, and the catalogue if Redis has another version of it than the ledger.

        What Redis had no room for before is told now, if nothing was acknowledged since.
        """
        self._context.tell()
        found, catalogue = self._publish_figures(), self._catalogue
        if found != catalogue.version:
            self._mirror.follow(catalogue.offered, catalogue.version, found)

    def publish_pool(self) -> None:
        """Publish the pool; a name that a former life of Redis forgot comes back with the next one."""
        self._pool([POOLS_KEY], [self._info.pool, self._info.model_dump_json()])

    def retry_after_s(self) -> float:
        """Predict when a full backlog will have room."""
        rate = self._fleet.jobs_per_s(self._clock())
        wanted = self._settings.max_backlog * RETRY_SHARE
        return min(MAX_RETRY_S, max(MIN_RETRY_S, wanted / rate)) if rate > 0 else MIN_RETRY_S

    def _publish_figures(self) -> int:
        settings = self._settings
        arguments: list[Any] = [
            max(0, settings.max_backlog - self._queue.depth()),
            settings.max_intake_entries,
            settings.max_intake_bytes,
            f"{self.retry_after_s():.3f}",
            self._context.items.num_put_aside.total(),
        ]
        (version,) = self._figures([self._context.keys.admission], arguments)
        return int(version)
