"""Flower remembers a bounded number of tasks and forgets workers that are long gone; it needs a password."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from pydantic import ValidationError

from lorayard.server.flower import BoundedEvents, FlowerSettings, GuardedFlower, make_flower

KEPT = 5


@pytest.fixture
def flower() -> Iterator[GuardedFlower]:
    """An application that neither listens nor connects."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    made = make_flower(FlowerSettings(flower_password="known", flower_max_tasks=KEPT))
    yield made
    made.executor.shutdown()
    asyncio.set_event_loop(None)
    loop.close()


def hear(events: BoundedEvents, worker: str, heard_at: float) -> None:
    """Take in what a worker says of one job, as the loop would."""
    common = {
        "hostname": worker,
        "timestamp": heard_at,
        "local_received": heard_at,
        "clock": 1,
        "uuid": str(uuid4()),
    }
    for kind in ("task-received", "task-started", "task-succeeded"):
        described = {"name": "lorayard.generate", "args": "()", "kwargs": "{'tenant': 'a'}", "runtime": 0.1}
        events.state.event({"type": kind, **common, **described})


def test_the_oldest_tasks_are_forgotten_wherever_they_are_kept(flower: GuardedFlower) -> None:
    events = flower.events

    for _ in range(10 * KEPT):
        hear(events, "worker-1@host", time.time())
    gc.collect()  # a task refers to itself

    assert len(events.state.tasks) == len(events.state.search_engine.documents) == KEPT
    assert len(events.state._taskheap) <= KEPT * events.state.heap_multiplier
    assert len(events.state.tasks_by_worker["worker-1@host"]) == KEPT


def test_a_worker_last_heard_an_hour_ago_leaves_nothing_behind(flower: GuardedFlower) -> None:
    events, now = flower.events, time.time()
    hear(events, "gone@host", now - 3700)
    hear(events, "here@host", now - 60)
    flower.inspector.workers |= {"gone@host": {}, "here@host": {}}

    events.forget_workers(flower.inspector.workers, now)

    state = events.state
    for named in (state.workers, state.counter, state.tasks_by_worker, flower.inspector.workers):
        assert list(named) == ["here@host"]
    counted = {labels[0] for labels in state.metrics.events._metrics}
    assert "here@host" in counted
    assert "gone@host" not in counted


def test_without_a_password_it_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAYARD_FLOWER_PASSWORD", "")

    with pytest.raises(ValidationError, match="it is not set"):
        FlowerSettings()
