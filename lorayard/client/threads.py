"""The few threads in which an asyncio program's client talks to Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")

NUM_THREADS: Final = 4
"""Redis answers one exchange at a time; with a few more, none waits for another's preparation."""


class Threads:
    """Runs short calls beside the event loop; never one for each job."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(NUM_THREADS, "lorayard-async")

    async def run(self, call: Callable[[], T]) -> T:
        """Return what a call returns, in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def stop(self) -> None:
        """Let running calls end by themselves; none begins any more."""
        self._executor.shutdown(wait=False, cancel_futures=True)
