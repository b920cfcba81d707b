"""The one way a Celery application is configured here, so that scheduler, workers and Flower agree."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery

from lorayard.transport.redis_url import broker_options, broker_url

# A dead broker must fail a publish within seconds, not hang it; the health check must come round well
# before NAT tables forget an idle connection.
BROKER_SOCKETS: Final[dict[str, Any]] = {
    "socket_timeout": 15.0,
    "socket_connect_timeout": 5.0,
    "socket_keepalive": True,
    "health_check_interval": 25,
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


def make_app(redis_url: str, *, set_as_current: bool = False) -> Celery:
    """Make a Celery application on a Redis broker; nothing connects yet. Raises ValueError for an odd URL."""
    app = Celery("lorayard", broker=broker_url(redis_url), set_as_current=set_as_current)
    app.conf.update(CONFIGURATION, broker_transport_options=BROKER_SOCKETS | broker_options(redis_url))
    return app
