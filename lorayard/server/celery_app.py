"""The one way a Celery application is configured here, so that scheduler, workers and Flower agree."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from celery.app.amqp import AMQP
from kombu.connection import Connection

from lorayard.transport.connections import (
    HEALTH_CHECK_S,
    KEEPALIVE,
    SERVICE_CONNECT_TIMEOUT_S,
    SERVICE_TIMEOUT_S,
)
from lorayard.transport.redis_url import broker_options, broker_url

RECONNECTS: Final = {"interval_start": 0.1, "interval_step": 0.2, "interval_max": 1.0}
"""Pauses between tries to connect: kombu's grow to 30 s, for which a worker would be deaf after an outage."""

BROKER_OPTIONS: Final[dict[str, Any]] = {
    "socket_timeout": SERVICE_TIMEOUT_S,
    "socket_connect_timeout": SERVICE_CONNECT_TIMEOUT_S,
    "socket_keepalive": True,
    "socket_keepalive_options": KEEPALIVE,
    "health_check_interval": HEALTH_CHECK_S,
    "retry_on_timeout": False,  # kombu and whoever publishes begin anew themselves
    # Whoever needs a channel learns within a second that there is none; kombu would wait 2, 4, ... s.
    "max_retries": 2,
    **RECONNECTS,
    "max_connections": 10,  # of one channel, which reads with one and writes with another
    "visibility_timeout": 3600,  # of messages that were read and not accepted, which leases bring back sooner
}

CONFIGURATION: Final[dict[str, Any]] = {
    # The wire: JSON and nothing else, because pickle runs what it reads.
    "accept_content": ["json"],
    "task_serializer": "json",
    "event_serializer": "json",
    "task_default_queue": "lorayard",
    "enable_utc": True,
    # Delivery: leases and fencing recover lost work, so a message is taken off the queue at once and no
    # visibility timeout can ever run it twice. Results live in Postgres, never in a result backend.
    "task_acks_late": False,
    "task_ignore_result": True,
    "task_store_errors_even_if_ignored": False,
    "worker_prefetch_multiplier": 0,
    "worker_disable_rate_limits": True,
    "worker_detect_quorum_queues": False,
    # Flower sees micro-batches by these; jobs by `JobEvents`.
    "task_send_sent_event": True,
    "worker_send_task_events": True,
    "worker_enable_remote_control": True,
    # Redis restarts: come back forever, keep what runs.
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_connection_timeout": SERVICE_CONNECT_TIMEOUT_S,
    "broker_pool_limit": 10,  # publishers at once in one process
    # What Redis refuses (READONLY after a failover, MISCONF, NOPERM, OOM) passes like a lost connection;
    # without this Celery calls it unrecoverable and ends the worker.
    "broker_channel_error_retry": True,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    # A publish is retried for about a second; then its sender gives the lease back.
    "task_publish_retry": True,
    "task_publish_retry_policy": {
        "max_retries": 3,
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 0.5,
    },
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
}


class _Connection(Connection):
    """kombu's, with our pauses: Celery's consumer names none when it connects anew."""

    def _ensure_connection(self, *arguments: Any, **options: Any) -> Any:
        return super()._ensure_connection(*arguments, **(RECONNECTS | options))  # type: ignore[no-untyped-call]


class _Amqp(AMQP):  # type: ignore[misc]
    Connection = _Connection


def make_app(redis_url: str, *, set_as_current: bool = False) -> Celery:
    """Make a Celery application on a Redis broker; nothing connects yet. Raises ValueError for an odd URL."""
    app = Celery("lorayard", broker=broker_url(redis_url), amqp=_Amqp, set_as_current=set_as_current)
    app.conf.update(CONFIGURATION, broker_transport_options=BROKER_OPTIONS | broker_options(redis_url))
    return app
