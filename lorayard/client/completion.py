"""Handles in the order in which their jobs end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from queue import Empty, SimpleQueue

from lorayard.client.handle import JobHandle
from lorayard.client.session import Session
from lorayard.client.tracked_job import TrackedJob
from lorayard.client.tracker import Wake
from lorayard.contract.errors import ResultTimeout

_PORTION = 1000


def as_completed(handles: Iterable[JobHandle], timeout: float | None = None) -> Iterator[JobHandle]:
    """Yield each handle once its job has ended, whichever ends first.

    Handles may belong to several clients. Raises ResultTimeout when `timeout` seconds, counted from the first
    `next`, are over before all have been yielded; those whose end is known by then come before it.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    waiting = dict.fromkeys(handles)
    heard: SimpleQueue[JobHandle] = SimpleQueue()
    with ExitStack() as awaiting:
        for some in _portions(list(waiting)):
            if _left(deadline) == 0:
                break
            for session, waits in _by_session(some, heard).items():
                session.listen()
                session.tracker.await_jobs(waits)
                awaiting.callback(session.tracker.leave_jobs, waits)
        # From here on whatever ends is heard of; what had ended before is seen here.
        for handle in [handle for handle in waiting if handle.is_settled]:
            del waiting[handle]
            yield handle
        while waiting:
            which = "1 job has" if len(waiting) == 1 else f"{len(waiting)} jobs have"
            handle = _next(heard, deadline, f"{which} not ended within {timeout} s")
            handle.session.raise_if_deaf()
            if handle.is_settled and handle in waiting:
                del waiting[handle]
                yield handle


def _portions(handles: Sequence[JobHandle]) -> Iterator[Sequence[JobHandle]]:
    """Cut a long list, so that time is looked at now and then and replies are taken in meanwhile."""
    for start in range(0, len(handles), _PORTION):
        yield handles[start : start + _PORTION]


def _by_session(
    handles: Iterable[JobHandle], heard: SimpleQueue[JobHandle]
) -> dict[Session, list[tuple[TrackedJob, Wake]]]:
    waits: dict[Session, list[tuple[TrackedJob, Wake]]] = {}
    for handle in handles:
        waits.setdefault(handle.session, []).append((handle.tracked, partial(heard.put, handle)))
    return waits


def _next(heard: SimpleQueue[JobHandle], deadline: float | None, complaint: str) -> JobHandle:
    """Take the next one that was heard of: none after the deadline, however many wait to be looked at."""
    left = _left(deadline)
    try:
        if left != 0:
            return heard.get(timeout=left)
    except Empty:
        pass
    raise ResultTimeout(f"{complaint}: wait again, what is running goes on")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
