"""Publishes in Redis what clients go by: the room left, the pool, its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from db.records import TenantQuota
from lorayard.contract.keys import POOLS_KEY
from lorayard.contract.pool import PoolInfo
from scheduler.catalogue import Catalogue
from scheduler.catalogue_mirror import CatalogueMirror
from scheduler.forecast import Forecast
from scheduler.instructions import Instructions
from scheduler.leader_context import LeaderContext
from scheduler.queue_feed import QueueFeed
from scheduler.settings import SchedulerSettings


class AdmissionPublisher:
    """The publications of one term; raises redis-py's errors, DatabaseUnavailable and Deposed."""

    def __init__(
        self,
        context: LeaderContext,
        settings: SchedulerSettings,
        info: PoolInfo,
        catalogue: Catalogue,
        queue: QueueFeed,
        instructions: Instructions,
        forecast: Forecast,
    ) -> None:
        self._context = context
        self._settings = settings
        self._info = info
        self._catalogue = catalogue
        self._queue = queue
        self._instructions = instructions
        self._forecast = forecast
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
            mirror = partial(self._mirror.follow, catalogue.offered, catalogue.version, found)
            self._context.items.chore("catalogue_mirror", mirror)

    def publish_pool(self) -> None:
        """Publish the pool; a name that a former life of Redis forgot comes back with the next one."""
        self._pool([POOLS_KEY], [self._info.pool, self._info.model_dump_json()])

    def _publish_figures(self) -> int:
        settings, keys = self._settings, self._context.keys
        arguments: list[Any] = [
            max(0, settings.max_backlog - self._queue.depth()),
            settings.max_intake_entries,
            settings.max_intake_bytes,
            f"{self._forecast.retry_after_s(settings.max_backlog):.3f}",
            self._context.items.num_put_aside.total(),
            *self._quotas(),
        ]
        (version,) = self._figures([keys.admission, keys.quotas], arguments)
        return int(version)

    def _quotas(self) -> list[Any]:
        """Say what tenants with quotas may still submit, as `publish_figures.lua` takes it."""
        quotas = self._instructions.quotas
        depths = self._queue.depths([one.tenant for one in quotas if one.max_queued_jobs is not None])
        words: list[Any] = []
        for quota in quotas:
            add = partial(self._add_quota, quota, depths, words)
            self._context.items.attempt("tenant_quota", quota.tenant, add)
        return words

    def _add_quota(self, quota: TenantQuota, depths: Mapping[str, int], words: list[Any]) -> None:
        tenant, limit, tokens_per_s = quota
        retry_s = self._forecast.tenant_retry_after_s(tenant, limit) if limit is not None else 0.0
        room = "" if limit is None else max(0, limit - depths[tenant])
        shown = ["" if limit is None else limit, room, f"{retry_s:.3f}", tokens_per_s or ""]
        words += (tenant, " ".join(str(one) or "-" for one in shown))
