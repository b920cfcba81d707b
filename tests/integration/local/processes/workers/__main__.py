"""Stands for a worker."""

import os

from life import live

live(os.environ["LORAYARD_WORKER_NAME"])
