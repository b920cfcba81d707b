"""The Celery application of a worker, and of whoever sends it commands: `celery -A workers.app inspect`."""

from __future__ import annotations

from lorayard.process.environment import readable_settings
from lorayard.server.celery_app import make_app
from workers.settings import BrokerSettings

with readable_settings("celery"):
    app = make_app(BrokerSettings().redis_url)
