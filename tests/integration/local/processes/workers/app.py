"""The Celery app that the real Flower watches in these tests."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("workers", broker=os.environ["LORAYARD_REDIS_URL"])
