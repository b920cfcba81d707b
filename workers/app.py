"""The Celery application as Flower and the worker share it: `celery -A workers.app flower`."""

from __future__ import annotations

from lorayard.process.environment import readable_settings
from lorayard.server.celery_app import make_app
from workers.settings import BrokerSettings

with readable_settings("celery"):
    app = make_app(BrokerSettings().redis_url)
