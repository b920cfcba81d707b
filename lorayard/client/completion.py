"""Handles in the order in which their jobs end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from queue import Empty, SimpleQueue

from lorayard.client.handle import JobHandle
from lorayard.contract.errors import ResultTimeout


def as_completed(handles: Iterable[JobHandle], timeout: float | None = None) -> Iterator[JobHandle]:
    """Yield each handle once its job has ended, whichever ends first.

    Handles may belong to several clients. Raises ResultTimeout when `timeout` seconds, counted from the first
    `next`, are over before all have been yielded.
    """
    waiting = dict.fromkeys(handles)
    deadline = None if timeout is None else time.monotonic() + timeout
    heard: SimpleQueue[JobHandle] = SimpleQueue()
    with ExitStack() as awaiting:
        for handle in waiting:
            handle.session.listen()
            wake = partial(heard.put, handle)
            awaiting.enter_context(handle.session.tracker.awaiting(handle.tracked, wake))
            wake()
        while waiting:
            handle = _next(heard, deadline, f"{len(waiting)} jobs have not ended within {timeout} s")
            handle.session.raise_if_deaf()
            if handle.is_settled and handle in waiting:
                del waiting[handle]
                yield handle


def _next(heard: SimpleQueue[JobHandle], deadline: float | None, complaint: str) -> JobHandle:
    try:
        return heard.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
    except Empty as error:
        raise ResultTimeout(f"{complaint}: they go on, wait again") from error
