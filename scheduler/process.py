"""A scheduler process: follows until it becomes the leader, leads until it must not, and begins again."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import Final
from uuid import uuid4

import structlog
from celery import Celery
from redis import Redis

from db.database import MAX_HOLD_MS, Database
from db.judge import explain
from lorayard.contract.pool import PoolInfo
from lorayard.process.logs import worded
from lorayard.process.restarts import RestartBudget
from lorayard.process.stop_request import StopRequest
from lorayard.server.celery_app import make_app
from lorayard.server.flower_events import JobEvents
from lorayard.transport.connections import for_service
from scheduler.adapter_collector import AdapterCollector
from scheduler.admission_publisher import AdmissionPublisher
from scheduler.catalogue import Catalogue
from scheduler.checkpoint import describe_pool
from scheduler.control import Control
from scheduler.deliveries import Deliveries
from scheduler.dispatch import Dispatcher
from scheduler.endings import Endings
from scheduler.fleet import Fleet
from scheduler.flower_reporter import FlowerReporter
from scheduler.forecast import Forecast
from scheduler.housekeeping import Housekeeping
from scheduler.instructions import Instructions
from scheduler.intake import Intake
from scheduler.item_failures import ItemFailures
from scheduler.leader import Leader
from scheduler.leader_context import LeaderContext
from scheduler.policies import PolicyConfig, lookahead
from scheduler.quarantine import Quarantine
from scheduler.queue_feed import QueueFeed
from scheduler.reaper import Reaper
from scheduler.retention import Retention
from scheduler.revokes import RevokeNode
from scheduler.rounds import Rounds
from scheduler.settings import SchedulerSettings
from scheduler.shares import Shares
from scheduler.store_failures import StoreFailures
from scheduler.streams import LeaderStreams
from scheduler.tenancy import Tenancy
from scheduler.term import TermKeeper
from scheduler.worker_commands import WorkerCommands
from scheduler.worker_events import WorkerEvents

FOLLOWER_POLL_S: Final = 0.25
RETRY_S: Final = 1.0
TERM_TIMEOUT_MS: Final = 2000
TERM_LOCK_TIMEOUT_MS: Final = 1500
"""Less than the statement's, so that a term that somebody sits on is told from a slow ledger."""

logger = structlog.get_logger(__name__)


class Scheduler:
    """One process: its connections, and one term after another. `seal` makes secrets for new tenants."""

    def __init__(
        self,
        settings: SchedulerSettings,
        *,
        seal: Callable[[], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self.info: PoolInfo = describe_pool(
            settings.model,
            settings.dtype,
            settings.max_model_len,
            settings.served_model_name,
            settings.generation_config,
        )
        url = settings.database_url.get_secret_value()
        self._database = Database(
            url,
            pool_size=2,
            statement_timeout_ms=settings.statement_timeout_ms,
            lock_timeout_ms=MAX_HOLD_MS,
            name="lorayard-scheduler",
        )
        # Its own connection: a renewal never waits for one that the loop has in use.
        self._terms = Database(
            url,
            pool_size=1,
            statement_timeout_ms=TERM_TIMEOUT_MS,
            lock_timeout_ms=TERM_LOCK_TIMEOUT_MS,
            name="lorayard-term",
        )
        self._redis: Redis = for_service(settings.redis_url)
        self._app: Celery = make_app(settings.redis_url)
        # Jobs show as sent one by one, and micro-batches as soon as their worker has them.
        self._app.conf.task_send_sent_event = False
        nodename = f"scheduler@{socket.gethostname()}"
        events = JobEvents(self._app, nodename, max_events_per_s=settings.max_flower_events_per_s)
        self._flower = FlowerReporter(events)
        self._revokes = RevokeNode(self._app, nodename)
        self._tenancy = Tenancy(auto_tenants=settings.auto_tenants, seal=seal)
        self._is_broken = False
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"

    def run(self, stopping: StopRequest) -> bool:
        """Serve until told to stop, then resign; False if it stopped because it could not go on."""
        self._flower.start()
        self._revokes.start()
        restarts = RestartBudget(self._clock)
        while not stopping.is_set():
            try:
                pause_s = self._follow(stopping)
            except Exception as error:
                logger.exception("scheduler.failed", error=worded(error))
                pause_s = RETRY_S
                if not restarts.take():
                    logger.critical("scheduler.broken")
                    self._give_up(stopping)
            stopping.wait(pause_s)
        self._revokes.close()
        self._flower.close()
        self._app.close()
        self._redis.close()
        self._database.dispose()
        self._terms.dispose()
        return not self._is_broken

    def _follow(self, stopping: StopRequest) -> float:
        """Lead if no other scheduler does; returns how long to wait before the next try."""
        try:
            keeper = TermKeeper.take(
                self._terms,
                self.info.pool,
                self._holder,
                self._settings.term_ttl_s,
                on_broken=lambda _thread: self._give_up(stopping),
            )
        except Exception as error:  # noqa: BLE001 - without a term nothing is at stake but the next try
            logger.warning("scheduler.ledger_unavailable", error=explain(error))
            return RETRY_S
        if keeper is None:
            self._touch_ready_file()
            return FOLLOWER_POLL_S
        logger.info("leader.elected", pool=self.info.pool, term=keeper.term, holder=self._holder)
        keeper.start()
        try:
            with closing(self._leader(keeper)) as leader:
                if not leader.lead(stopping, self._touch_ready_file):
                    self._give_up(stopping)
        finally:
            keeper.close(resign=True)
        logger.info("leader.stepped_down", pool=self.info.pool, term=keeper.term)
        return FOLLOWER_POLL_S

    def _give_up(self, stopping: StopRequest) -> None:
        self._is_broken = True
        stopping.set()

    def _leader(self, keeper: TermKeeper) -> Leader:
        settings, info, clock = self._settings, self.info, self._clock
        items = ItemFailures(clock)
        context = LeaderContext(
            info.pool, keeper.term, keeper.ledger, self._database, self._redis, items=items
        )
        streams = LeaderStreams(context)
        catalogue, instructions = Catalogue(info.pool), Instructions(info.pool, clock)
        failures = StoreFailures(settings.adapter_pause_s)
        fleet = Fleet(
            items,
            failures,
            max_model_len=info.max_model_len,
            overcommit_s=settings.overcommit_s,
            max_workers=settings.max_workers,
        )
        bound_s = settings.starvation_s
        retention_s = settings.retention_days * 86_400
        policy = PolicyConfig(
            policy=settings.policy,
            starvation_s=(bound_s / 2, bound_s, bound_s * 3),
            grouping_window=settings.grouping_window,
        )
        queue = QueueFeed(context, catalogue, instructions, clock, policy)
        shares = Shares(context, queue, fleet)
        weights = (lambda: queue.fairness.weights) if settings.policy == "fair" else None
        forecast = Forecast(fleet, queue, instructions, clock, weights)
        deliveries = Deliveries()
        dispatcher = Dispatcher(
            context,
            self._app,
            deliveries,
            queue.fairness.lengths,
            max_model_len=info.max_model_len,
            max_batch_jobs=settings.max_batch_jobs,
        )
        endings = Endings(context, queue, self._flower, deliveries)
        quarantine = Quarantine(context, catalogue, fleet, failures, endings, clock)
        events = WorkerEvents(
            context, streams, fleet, queue, quarantine, endings, deliveries, dispatcher.ping, clock
        )
        return Leader(
            context=context,
            keeper=keeper,
            instructions=instructions,
            streams=streams,
            queue=queue,
            fleet=fleet,
            intake=Intake(context, streams, catalogue, self._tenancy, info, self._flower, shares),
            control=Control(context, streams, fleet, endings, forecast),
            events=events,
            shares=shares,
            rounds=Rounds(items, queue, fleet, dispatcher),
            commands=WorkerCommands(context, catalogue, instructions, fleet, queue, lookahead, clock),
            endings=endings,
            reaper=Reaper(
                context,
                catalogue,
                instructions,
                fleet,
                events,
                quarantine,
                endings,
                may_reap=lambda: keeper.contact_s() >= settings.worker_lease_s,
            ),
            publisher=AdmissionPublisher(context, settings, info, catalogue, queue, instructions, forecast),
            housekeeping=Housekeeping(context),
            retention=Retention(context, retention_s, settings.key_days * 86_400),
            collector=AdapterCollector(context, settings.adapter_store, retention_s),
            revokes=self._revokes,
            clock=clock,
        )

    def _touch_ready_file(self) -> None:
        if self._settings.ready_file is not None:
            self._settings.ready_file.touch()
