"""A job in the hand of an asyncio program."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, TypeVar
from uuid import UUID

from lorayard.client.handle import JobHandle
from lorayard.client.job_steps import Exchange, Steps, Wait
from lorayard.client.stream import READ_COUNT, RawEntry, StreamEvent, TokenStream
from lorayard.client.threads import Threads
from lorayard.client.token_reader import TokenReader
from lorayard.contract.result import JobProgress, JobResult
from lorayard.contract.states import JobState

T = TypeVar("T")


class AsyncJobHandle:
    """One job; `AsyncClient.submit` and `AsyncClient.job` make it. It may be awaited in any event loop.

    Whoever stops waiting (a cancelled task, a timeout) leaves the job running.
    """

    def __init__(self, handle: JobHandle, threads: Threads, reader: TokenReader) -> None:
        self._handle = handle
        self._steps = handle.steps
        self._threads = threads
        self._reader = reader

    def __reduce__(self) -> str:
        raise TypeError(
            f"the handle of job {self.id} belongs to its process: send its id, and call AsyncClient.job there"
        )

    def __repr__(self) -> str:
        return f"AsyncJobHandle({self.id}, {self._steps.tracked.state or 'unknown'})"

    @property
    def id(self) -> UUID:
        """The job's id, by which any process finds it again."""
        return self._handle.id

    async def done(self) -> bool:
        """Tell whether `result` would return or raise at once; never waits for the answer to a question."""
        return self._steps.is_settled or await self._threads.run(self._steps.look)

    async def result(self, timeout: float | None = None, *, raise_on_failure: bool = True) -> JobResult:  # noqa: ASYNC109
        """Wait for the job's end, at most `timeout` seconds; raises as `JobHandle.result` does."""
        return await self.take(self._steps.result(timeout, raise_on_failure=raise_on_failure))

    async def status(self) -> JobProgress:
        """Ask for the job's state, place in the queue and foreseen end; raises as `JobHandle.status` does."""
        return await self.take(self._steps.status())

    async def cancel(self) -> JobState:
        """Ask for the job's end; returns the state found, and raises, as `JobHandle.cancel` does."""
        return await self.take(self._steps.cancel())

    async def wait_admitted(self, timeout: float, deadline: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until the ledger holds the job; raises as `JobHandle.wait_admitted` does."""
        await self.take(self._steps.admitted(timeout, deadline))

    async def stream(self, timeout: float | None = None) -> AsyncIterator[StreamEvent]:  # noqa: ASYNC109
        """Yield the job's text while it is being written; what comes, and is raised, is `JobHandle.stream`'s.

        A reader that is slower than the model leaves what it has not asked for in Redis.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        steps = self._steps
        steps.session.listen()
        await self.take(steps.verdict(timeout, deadline))
        tokens = TokenStream(self.id)
        with steps.session.tracker.awaiting(steps.tracked, lambda: None):
            while not tokens.has_ended:
                # What was written before the end was heard of is there to be read after it.
                is_last = steps.is_settled or (deadline is not None and time.monotonic() >= deadline)
                entries = await self._read(tokens, waits=not is_last)
                for event in tokens.take(entries):
                    yield event
                if is_last and len(entries) < READ_COUNT:
                    break
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        for event in tokens.rest(await self.result(left)):
            yield event

    async def take(self, steps: Steps[T]) -> T:
        """Take steps in this event loop, up to what they return."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = await self._do(step)
                except Exception as error:  # noqa: BLE001 - the steps decide what it means
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

    async def _do(self, step: Wait | Exchange) -> Any:
        return await (self._threads.run(step.call) if isinstance(step, Exchange) else self._wait(step))

    async def _wait(self, wait: Wait) -> None:
        if wait.is_over():
            return
        session = self._steps.session
        session.listen()
        deadline, heard = wait.until(), asyncio.Event()
        with session.tracker.awaiting(self._steps.tracked, _waker(heard)):
            while not wait.is_over():
                session.raise_if_deaf()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise self._steps.timed_out(wait)
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await heard.wait()
                heard.clear()

    async def _read(self, tokens: TokenStream, *, waits: bool) -> list[RawEntry]:
        loop = asyncio.get_running_loop()
        read: asyncio.Future[list[RawEntry]] = loop.create_future()

        def settle(entries: list[RawEntry]) -> None:
            if not read.done():
                read.set_result(entries)

        def tell(entries: list[RawEntry]) -> None:
            loop.call_soon_threadsafe(settle, entries)

        self._steps.session.raise_if_deaf()
        self._reader.read(tokens.key, tokens.cursor, tell, waits=waits)
        return await read


def _waker(heard: asyncio.Event) -> Callable[[], None]:
    """Make what another thread calls to set an event of this loop, however late."""
    loop = asyncio.get_running_loop()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(heard.set)

    return wake
