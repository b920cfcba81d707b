"""Starts a worker process, wires its parts together, and starts it again when an incarnation is over."""

from __future__ import annotations

import logging
import os
import socket
import sys
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import NoReturn

import structlog
from redis import Redis

from db.database import MAX_HOLD_MS, Database
from lorayard.contract.keys import PoolKeys
from lorayard.process.environment import readable_settings
from lorayard.process.logs import configure_logs
from lorayard.process.stop_request import StopRequest, hold_back
from lorayard.server.celery_app import BROKER_SOCKETS
from lorayard.server.flower_events import JobEvents
from workers.app import app
from workers.attempts import AttemptTable
from workers.celery_worker import CeleryWorker, is_revoked
from workers.commands import CommandReader
from workers.committer import Committer
from workers.engine.core.config import EngineConfig
from workers.engine.core.engine_info import EngineInfo
from workers.engine.core.errors import ConfigError, EngineStartError
from workers.engine.serving.process import EngineProcess
from workers.engine_host import EngineHost
from workers.engine_status import Capacity, EngineStatus
from workers.event_builder import WorkerEventBuilder
from workers.event_publisher import EventPublisher
from workers.lease import LeaseKeeper
from workers.ledger_health import LedgerHealth
from workers.registration import Registration, device_of, limits_of
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

GAVE_UP = 1
"""Exit status of a process that could not go on: whoever supervises it starts another."""

logger = structlog.get_logger(__name__)


def main() -> int:
    """Run one worker until it is told to leave; returns the exit status."""
    with readable_settings("workers"):
        settings = WorkerSettings()
    incarnation = uuid.uuid4().hex
    configure_logs(process="worker", worker=settings.worker_name, incarnation=incarnation[:8])
    # It warns at each revoke that there is no result backend, which is so on purpose.
    logging.getLogger("celery.worker.control").setLevel(logging.ERROR)
    stop = StopRequest()
    stop.listen()
    _reap_leftovers()
    try:
        engine = EngineProcess(_engine_config(settings))
        info = engine.start(settings.engine_start_s, is_unwanted=stop.is_set)
    except (ConfigError, EngineStartError) as error:
        if stop.is_set():
            return 0
        logger.critical("engine.not_started", error=str(error))
        return 1
    logger.info(
        "engine.started",
        model=info.model,
        pid=engine.pid,
        kv_blocks=info.num_kv_blocks,
        **asdict(device_of(info)),
    )
    ending = _build(settings, incarnation, engine, info, stop).run()
    if ending is WorkerEnd.BROKEN:
        return GAVE_UP
    hold_back()  # a signal from here on is for the next incarnation, if there is one
    if ending is not WorkerEnd.DRAINED and not stop.is_set():
        _start_again()
    return 0


def _start_again() -> NoReturn:
    """Become a new process with a new incarnation: no state of the old one can leak into it."""
    logger.info("worker.restarting")
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606


def _reap_leftovers() -> None:
    """Bury what the incarnation before this one left to its process: an engine that it could not wait for."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _engine_config(settings: WorkerSettings) -> EngineConfig:
    return EngineConfig(
        model=str(settings.model),
        served_model_name=settings.served_model_name,
        device=settings.device,
        dtype=settings.dtype,
        kernels=settings.kernels,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        enforce_eager=settings.enforce_eager,
        lora_pool_bytes=settings.lora_pool_bytes,
        max_num_seqs=settings.max_num_seqs,
        max_model_len=settings.max_model_len,
        num_kv_blocks=settings.num_kv_blocks,
        enable_prefix_caching=settings.prefix_cache != "off",
        enable_lora=True,
        max_loras=settings.max_loras,
        max_lora_rank=settings.max_lora_rank,
        max_cpu_loras=settings.max_cpu_loras,
        max_cpu_lora_bytes=settings.max_cpu_lora_bytes,
        max_saved_module_bytes=settings.max_saved_module_bytes,
        max_queued_lora_loads=settings.max_queued_lora_loads,
        lora_load_timeout_s=settings.lora_load_timeout_s,
        num_threads=settings.num_threads,
    )


def _build(
    settings: WorkerSettings,
    incarnation: str,
    engine: EngineProcess,
    info: EngineInfo,
    stop: StopRequest,
) -> WorkerService:
    return WorkerService(
        stop,
        ready_file=settings.ready_file,
        drain_grace_s=settings.drain_grace_s,
        flush_s=settings.flush_s,
        build=lambda service: _Wiring(settings, incarnation, info, service).parts(engine),
    )


@dataclass(frozen=True)
class _Wiring:
    """Puts the parts of one incarnation together: what calls upwards does so through `service`."""

    settings: WorkerSettings
    incarnation: str
    info: EngineInfo
    service: WorkerService

    @property
    def hostname(self) -> str:
        """The name of the Celery node."""
        return f"{self.settings.worker_name}-{self.incarnation[:8]}@{socket.gethostname()}"

    @property
    def keys(self) -> PoolKeys:
        """The Redis names of the pool."""
        return PoolKeys(self.settings.pool)

    def parts(self, engine: EngineProcess) -> Parts:
        """Make all of them, each after those that it is given."""
        redis = self._redis()
        status = EngineStatus(Capacity(self.info.max_num_seqs, self.info.num_kv_blocks))
        health = LedgerHealth()
        builder = WorkerEventBuilder(self.incarnation, status, lambda: health.takes_work)
        publisher = self._publisher(redis, builder)
        tokens = TokenWriter(self._redis())
        attempts = AttemptTable(lambda _task_id: celery.wake())  # nothing wakes it before it is there
        committer = self._committer(attempts, publisher, health)
        host = self._host(engine, attempts, committer, publisher, tokens, status)
        registration = self._registration()
        lease = self._lease(registration, attempts, host, health)
        celery = self._celery(host, lease)
        commands = self._commands(redis, host)
        return Parts(
            attempts, host, committer, builder, publisher, tokens, registration, lease, commands, celery
        )

    def _redis(self) -> Redis:
        return Redis.from_url(self.settings.redis_url, **BROKER_SOCKETS)

    def _publisher(self, redis: Redis, builder: WorkerEventBuilder) -> EventPublisher:
        events = JobEvents(app, self.hostname)
        return EventPublisher(redis, self.keys.worker_events, builder, events, on_broken=self.service.give_up)

    def _committer(
        self, attempts: AttemptTable, publisher: EventPublisher, health: LedgerHealth
    ) -> Committer:
        settings = self.settings
        database = Database(
            settings.database_url,
            pool_size=1,
            statement_timeout_ms=settings.statement_timeout_ms,
            lock_timeout_ms=MAX_HOLD_MS,
            name="lorayard-commits",
        )
        return Committer(
            PostgresLedger(database, self.incarnation),
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
    ) -> EngineHost:
        return EngineHost(
            engine,
            attempts,
            committer,
            publisher,
            AdapterIds(self.settings.adapter_store),
            status,
            is_revoked=is_revoked,
            on_died=lambda _error: self.service.end(WorkerEnd.ENGINE_DIED),
            on_broken=self.service.give_up,
            caches_by_tenant=self.settings.prefix_cache == "tenant",
            on_text=tokens.put,
        )

    def _registration(self) -> Registration:
        settings = self.settings
        lease_ms = settings.worker_lease_s * 1000
        database = Database(
            settings.database_url,
            pool_size=2,  # a drain has its word between beats
            statement_timeout_ms=round(lease_ms / STATEMENTS_PER_LEASE),
            lock_timeout_ms=min(MAX_HOLD_MS, round(lease_ms / LOCKS_PER_LEASE)),
            name="lorayard-lease",
        )
        return Registration(
            database,
            self.incarnation,
            settings.pool,
            self.hostname,
            limits_of(self.info),
            device=device_of(self.info),
            lease_s=settings.worker_lease_s,
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
            on_broken=self.service.give_up,
        )

    def _celery(self, host: EngineHost, lease: LeaseKeeper) -> CeleryWorker:
        define_tasks(app, host, pool=self.settings.pool, incarnation=self.incarnation)
        return CeleryWorker(
            app,
            self.incarnation,
            self.hostname,
            host,
            max_num_seqs=self.info.max_num_seqs,
            on_ready=lease.start,
        )

    def _commands(self, redis: Redis, host: EngineHost) -> CommandReader:
        return CommandReader(
            redis,
            self.keys.commands(self.incarnation),
            host,
            on_drain=self.service.drain,
            on_broken=self.service.give_up,
        )
