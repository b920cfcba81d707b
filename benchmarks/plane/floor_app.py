"""The application that `celery -A` starts as the floor's worker."""

from __future__ import annotations

from benchmarks.plane.floor import make_worker_app

app = make_worker_app()
