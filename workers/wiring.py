"""Wires the parts of one incarnation of a worker together."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from redis import Redis

from db.database import MAX_HOLD_MS, Database
from db.records import PoolRow, WorkerDevice, WorkerLimits
from lorayard.contract.keys import PoolKeys
from lorayard.server.flower_events import JobEvents
from lorayard.transport.connections import for_service
from workers.app import app
from workers.attempts import AttemptTable
from workers.celery_worker import CeleryWorker, is_revoked
from workers.commands import CommandReader
from workers.committer import Committer
from workers.engine.core.engine_info import EngineInfo
from workers.engine.core.errors import DeviceLost, EngineDied, EngineHung
from workers.engine.serving.process import EngineProcess
from workers.engine_host import EngineHost
from workers.engine_status import Capacity, EngineStatus
from workers.engine_watch import ProgressLimit
from workers.event_builder import WorkerEventBuilder
from workers.event_publisher import EventPublisher
from workers.foreign_ledger import foreign_ledger
from workers.lease import LeaseKeeper
from workers.ledger_health import LedgerHealth
from workers.registration import Registration, device_of, limits_of, pool_of
from workers.requests import AdapterIds
from workers.result_ledger import PostgresLedger
from workers.service import Parts, WorkerEnd, WorkerService
from workers.settings import WorkerSettings
from workers.spill import Spill
from workers.tasks import define_tasks
from workers.token_writer import TokenWriter

STATEMENTS_PER_LEASE = 5
"""A beat is three statements: were each as slow as it may be, the lease would still be renewed in time."""

LOCKS_PER_LEASE = 10


@dataclass(frozen=True)
class Wiring:
    """Puts the parts of one incarnation together: what calls upwards does so through `service`."""

    settings: WorkerSettings
    incarnation: str
    info: EngineInfo
    service: WorkerService
    began_at: float
    """When this incarnation's process began, in its monotonic seconds."""

    @property
    def hostname(self) -> str:
        """The name of the Celery node."""
        return hostname_of(self.settings, self.incarnation)

    @property
    def keys(self) -> PoolKeys:
        """The Redis names of the pool."""
        return PoolKeys(self.settings.pool)

    def parts(self, engine: EngineProcess) -> Parts:
        """Make all of them, each after those that it is given."""
        redis = for_service(self.settings.redis_url)
        status = EngineStatus(Capacity(self.info.max_num_seqs, self.info.num_kv_blocks))
        health = LedgerHealth()
        limit = ProgressLimit(start_s=self.settings.engine_start_s)
        builder = WorkerEventBuilder(
            self.incarnation, status, lambda: health.takes_work and not limit.is_late
        )
        publisher = self._publisher(redis, builder)
        tokens = TokenWriter(for_service(self.settings.redis_url))
        attempts = AttemptTable(lambda _task_id: celery.wake())  # nothing wakes it before it is there
        committer = self._committer(attempts, publisher, health)
        registration = self._registration()
        host = self._host(engine, attempts, committer, publisher, tokens, status, limit, registration)
        lease = self._lease(registration, attempts, host, health)
        celery = self._celery(host, lease, publisher)
        commands = self._commands(for_service(self.settings.redis_url), host, registration)
        return Parts(
            attempts, host, committer, builder, publisher, tokens, registration, lease, commands, celery
        )

    def _publisher(self, redis: Redis, builder: WorkerEventBuilder) -> EventPublisher:
        events = JobEvents(app, self.hostname)
        return EventPublisher(redis, self.keys.worker_events, builder, events, on_broken=self.service.give_up)

    def _committer(
        self, attempts: AttemptTable, publisher: EventPublisher, health: LedgerHealth
    ) -> Committer:
        settings = self.settings
        return Committer(
            PostgresLedger(commits_database(settings), self.incarnation),
            attempts,
            publisher.committed,
            health=health,
            spill=Spill(settings.spill_dir, self.incarnation),
            max_uncommitted=settings.max_uncommitted,
            on_broken=self.service.give_up,
            suspect_after_s=settings.suspect_after_s,
        )

    def _host(
        self,
        engine: EngineProcess,
        attempts: AttemptTable,
        committer: Committer,
        publisher: EventPublisher,
        tokens: TokenWriter,
        status: EngineStatus,
        limit: ProgressLimit,
        registration: Registration,
    ) -> EngineHost:
        return EngineHost(
            engine,
            attempts,
            committer,
            publisher,
            AdapterIds(self.settings.adapter_store),
            status,
            is_revoked=is_revoked,
            on_died=self._on_died,
            on_broken=self.service.give_up,
            caches_by_tenant=self.settings.prefix_cache == "tenant",
            on_text=tokens.put,
            limit=limit,
            ask_aborts=registration.aborts,
        )

    def _registration(self) -> Registration:
        return make_registration(
            self.settings,
            self.incarnation,
            limits_of(self.info),
            device_of(self.info),
            about=pool_of(self.settings, self.info),
            began_at=self.began_at,
        )

    def _lease(
        self, registration: Registration, attempts: AttemptTable, host: EngineHost, health: LedgerHealth
    ) -> LeaseKeeper:
        return LeaseKeeper(
            registration,
            attempts,
            host,
            health=health,
            on_registered=self.service.on_registered,
            heartbeat=self.service.on_heartbeat,
            on_lost=lambda: self.service.end(WorkerEnd.LEASE_LOST),
            on_refused=lambda reason: self.service.end(WorkerEnd.REFUSED, reason),
            on_broken=self.service.give_up,
        )

    def _celery(self, host: EngineHost, lease: LeaseKeeper, publisher: EventPublisher) -> CeleryWorker:
        define_tasks(
            app, host, pool=self.settings.pool, incarnation=self.incarnation, answer=publisher.answer
        )
        return CeleryWorker(
            app,
            self.incarnation,
            self.hostname,
            host,
            max_num_seqs=self.info.max_num_seqs,
            on_ready=lease.start,
        )

    def _commands(self, redis: Redis, host: EngineHost, registration: Registration) -> CommandReader:
        def why_foreign() -> str | None:
            ours = registration.ledger
            return None if ours is None else foreign_ledger(redis, self.settings.pool, ours)

        return CommandReader(
            redis,
            self.keys.commands(self.incarnation),
            host,
            on_drain=self.service.drain,
            why_foreign=why_foreign,
            on_foreign=lambda reason: self.service.end(WorkerEnd.REFUSED, reason),
            on_broken=self.service.give_up,
        )

    def _on_died(self, error: EngineDied) -> None:
        if isinstance(error, DeviceLost):
            self.service.end(WorkerEnd.DEVICE_LOST, error.reason)
        elif isinstance(error, EngineHung):
            self.service.end(WorkerEnd.ENGINE_HUNG)
        else:
            self.service.end(WorkerEnd.ENGINE_DIED)


def hostname_of(settings: WorkerSettings, incarnation: str) -> str:
    """Name an incarnation as Celery, ledger and `lorayard workers` do."""
    return f"{settings.worker_name}-{incarnation[:8]}@{socket.gethostname()}"


def host_of(settings: WorkerSettings) -> str:
    """Name the place where incarnations of this worker follow each other."""
    return f"{settings.worker_name}@{socket.gethostname()}"


def make_registration(
    settings: WorkerSettings,
    incarnation: str,
    limits: WorkerLimits,
    device: WorkerDevice,
    *,
    about: PoolRow | None = None,
    began_at: float | None = None,
) -> Registration:
    """Make an incarnation's rows in the ledger, on connections of their own."""
    return Registration(
        lease_database(settings),
        incarnation,
        settings.pool,
        hostname_of(settings, incarnation),
        limits,
        host=host_of(settings),
        store=f"{socket.gethostname()}:{settings.adapter_store.absolute()}",
        device=device,
        lease_s=settings.worker_lease_s,
        about=about,
        began_at=began_at,
    )


def commits_database(settings: WorkerSettings) -> Database:
    """Make the committer's one connection to the ledger."""
    return Database(
        settings.database_url,
        pool_size=1,
        statement_timeout_ms=settings.statement_timeout_ms,
        lock_timeout_ms=MAX_HOLD_MS,
        name="lorayard-commits",
    )


def lease_database(settings: WorkerSettings) -> Database:
    """Make the ledger's connections for an incarnation's own rows, and for the check of what arrives."""
    lease_ms = settings.worker_lease_s * 1000
    return Database(
        settings.database_url,
        pool_size=3,  # a drain has its word between beats, and so has what has just come
        statement_timeout_ms=round(lease_ms / STATEMENTS_PER_LEASE),
        lock_timeout_ms=min(MAX_HOLD_MS, round(lease_ms / LOCKS_PER_LEASE)),
        name="lorayard-lease",
    )
