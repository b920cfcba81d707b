"""The way in for asyncio programs: what `Client` does, awaited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, Unpack
from uuid import UUID

from lorayard.client.async_handle import AsyncJobHandle
from lorayard.client.handle import JobHandle
from lorayard.client.invalid_job import given_job, validated
from lorayard.client.session import Session
from lorayard.client.settings import client_settings
from lorayard.client.submitter import Confirm, Submitter
from lorayard.client.threads import Threads
from lorayard.client.token_reader import TokenReader
from lorayard.contract.errors import QueueFull, Unavailable
from lorayard.contract.job import JobKeywords, JobSpec


class AsyncClient:
    """A producer's connection for asyncio; one a process, shared by its tasks.

    Its arguments are `Client`'s. What talks to Redis does so in four threads, replies come by one more and
    streams of tokens by another, however many jobs there are: the event loop is never waited in.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        model: str | None = None,
        timeout_s: float = 5.0,
        confirm_timeout_s: float = 30.0,
    ) -> None:
        self._session = Session(redis_url, model, timeout_s)
        self._submitter = Submitter(self._session)
        self._threads = Threads()
        self._reader = TokenReader(self._session.link)
        self._confirm_timeout_s = confirm_timeout_s

    @classmethod
    def from_env(cls, *, model: str | None = None) -> Self:
        """Make a client of `LORAYARD_REDIS_URL` (or `REDIS_URL`)."""
        redis_url, timeout_s = client_settings()
        return cls(redis_url, model=model, timeout_s=timeout_s)

    def __reduce__(self) -> str:
        raise TypeError("an AsyncClient belongs to its process: make one in each")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop listening; jobs go on. Handles of this client can only tell what they already know."""

        def close() -> None:
            self._reader.stop()
            self._session.close()

        await self._threads.run(close)
        self._threads.stop()

    async def submit(
        self, prompt: str | None = None, *, confirm: Confirm = "stream", **fields: Unpack[JobKeywords]
    ) -> AsyncJobHandle:
        """Submit one job and return its handle; fields and errors are those of `Client.submit`."""
        return (await self._submit(lambda: [given_job(prompt, fields)], confirm))[0]

    async def submit_many(
        self, jobs: Iterable[JobSpec | Mapping[str, Any]], *, confirm: Confirm = "stream"
    ) -> list[AsyncJobHandle]:
        """Submit jobs in order, in blocks, as `Client.submit_many` does; a thread goes through `jobs`."""
        return await self._submit(
            lambda: [validated(job, position) for position, job in enumerate(jobs)], confirm
        )

    def job(self, job_id: UUID | str) -> AsyncJobHandle:
        """Return the handle of a job, whichever process submitted it; nothing is asked yet."""
        return self._handle(JobHandle(self._session, self._session.track(job_id)))

    async def adapters(self) -> list[str]:
        """Name the adapters that jobs may ask for; one just added shows within a second."""
        return await self._threads.run(self._session.adapters)

    def _handle(self, handle: JobHandle) -> AsyncJobHandle:
        return AsyncJobHandle(handle, self._threads, self._reader)

    async def _submit(self, make: Callable[[], list[JobSpec]], confirm: Confirm) -> list[AsyncJobHandle]:
        """Make jobs and append them in a thread, then wait for the ledger if that was asked for."""
        try:
            handles = await self._threads.run(lambda: self._submitter.append(make(), confirm))
        except (QueueFull, Unavailable) as error:
            error.accepted = tuple(map(self._handle, error.accepted))
            raise
        appended = [self._handle(handle) for handle in handles]
        if confirm == "ledger":
            deadline = time.monotonic() + self._confirm_timeout_s
            for handle in appended:
                await handle.wait_admitted(self._confirm_timeout_s, deadline)
        return appended
