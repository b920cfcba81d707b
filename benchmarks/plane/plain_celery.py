"""Plain Celery: one task for each job, with task events and with results in Redis."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from celery import Celery

from benchmarks.plane.lorayard_jobs import RESULT_TIMEOUT_S, jobs
from benchmarks.plane.stack import Machine

URL_VARIABLE: Final = "PLAIN_CELERY_URL"


def make_app(url: str) -> Celery:
    """Make the application as Celery's own first steps do."""
    app = Celery("plain", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        result_serializer="json",
        task_send_sent_event=True,
        worker_send_task_events=True,
        broker_connection_retry_on_startup=True,
    )

    @app.task(name="generate", shared=False)  # type: ignore[untyped-decorator]
    def generate(job: dict[str, Any]) -> dict[str, Any]:
        return {"output": str(len(job["prompt"])), "completion_tokens": 1}

    return app


app = make_app(os.environ.get(URL_VARIABLE, "redis://127.0.0.1:6379/1"))


def arguments(pool: str) -> list[str]:
    """Return how its worker is started."""
    module = "benchmarks.plane.plain_celery"
    return [
        "celery", "-A", module, "worker", "-E", "--pool", pool, "--concurrency", "2", "--loglevel", "ERROR",
        "--without-gossip", "--without-mingle",
    ]  # fmt: skip


def start(machine: Machine, pool: str) -> Celery:
    """Start a worker, and return the application of its producer once it answers."""
    url = machine.stack.redis.url_of(1)
    machine.spawn("celery", *arguments(pool), ready=False, environment={URL_VARIABLE: url})
    producer = make_app(url)
    run(producer, 64)
    return producer


def run(producer: Celery, number: int) -> float:
    """Send a task for each job and wait for all results; returns the seconds it took."""
    task = producer.tasks["generate"]
    described = jobs(number)
    started = time.perf_counter()
    sent = [task.delay(job) for job in described]
    for one in sent:
        assert one.get(timeout=RESULT_TIMEOUT_S)["completion_tokens"] == 1
    return time.perf_counter() - started
