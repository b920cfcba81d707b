"""Waiting for many handles keeps its timeout, however long it takes to begin."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from uuid import uuid4

import pytest

from lorayard import Client, JobResult, JobState, ResultTimeout, as_completed
from lorayard.client import completion


def test_time_is_looked_at_while_many_handles_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(completion, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    monkeypatch.setattr(completion, "_PORTION", 10)
    with Client("redis://127.0.0.1:1/0") as client:
        handles = [client.job(uuid4()) for _ in range(100)]
        ended = handles[70]
        ended.tracked.result = JobResult(job_id=ended.id, state=JobState.SUCCEEDED)
        first_wait = as_completed(handles, timeout=3)

        assert next(first_wait) is ended
        assert sum(bool(handle.tracked.subscribers) for handle in handles) == 20
        with pytest.raises(ResultTimeout, match="99 jobs have not ended within 3 s"):
            next(first_wait)

        assert not any(handle.tracked.subscribers for handle in handles)


def test_news_of_other_jobs_does_not_put_the_timeout_off(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(completion, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    with Client("redis://127.0.0.1:1/0") as client:
        handles = [client.job(uuid4()) for _ in range(2)]
        handles[0].tracked.result = JobResult(job_id=handles[0].id, state=JobState.SUCCEEDED)
        waiting = as_completed(handles, timeout=50)
        next(waiting)
        (wake,) = handles[1].tracked.subscribers
        for _ in range(1000):
            wake()

        with pytest.raises(ResultTimeout, match="1 job has not ended"):
            next(waiting)
        assert next(seconds) < 60
