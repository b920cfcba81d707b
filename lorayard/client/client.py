"""The producer's way in: submit jobs, find them again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack
from uuid import UUID

from lorayard.client.handle import JobHandle
from lorayard.client.invalid_job import given_job, validated
from lorayard.client.session import Session
from lorayard.client.settings import client_settings
from lorayard.client.submitter import Confirm, Submitter
from lorayard.contract.job import JobKeywords, JobSpec


class Client:
    """A producer's connection to Lorayard; one a process, shared by its threads.

    `model` (a model name or a pool id) chooses among several pools. `timeout_s` bounds each exchange with
    Redis and each wait for a scheduler's answer, `confirm_timeout_s` the wait of `confirm="ledger"` for all
    jobs of a call together. What the URL says of replies, timeouts and pools is for other libraries.
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
        self._confirm_timeout_s = confirm_timeout_s

    @classmethod
    def from_env(cls, *, model: str | None = None) -> Self:
        """Make a client of `LORAYARD_REDIS_URL` (or `REDIS_URL`)."""
        redis_url, timeout_s = client_settings()
        return cls(redis_url, model=model, timeout_s=timeout_s)

    def __reduce__(self) -> str:
        raise TypeError("a Client belongs to its process: make one in each")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; jobs go on. Handles of this client can only tell what they already know."""
        self._session.close()

    def submit(
        self,
        prompt: str | None = None,
        *,
        confirm: Confirm = "stream",
        **fields: Unpack[JobKeywords],
    ) -> JobHandle:
        """Submit one job and return its handle.

        `fields` are those of `JobSpec`: `adapter`, `max_tokens`, `temperature` and more; what is left out, or
        None, has its default. `messages` take the place of a prompt. `stream=True` has the text written as it
        comes, for `JobHandle.stream` to read. `structured_outputs` gives the answer a form: one of `json`,
        `regex`, `choice` and `grammar`.

        `confirm="stream"` returns once Redis has it, `"ledger"` once Postgres has. Raises InvalidJob,
        UnknownAdapter, UnknownPool, QueueFull (QuotaExceeded if it is only this tenant's), Unavailable, and
        with `"ledger"` IdempotencyConflict, ResultExpired and ResultTimeout; without it the first two of
        these are raised by `result`.
        """
        return self._submit([given_job(prompt, fields)], confirm)[0]

    def submit_many(
        self, jobs: Iterable[JobSpec | Mapping[str, Any]], *, confirm: Confirm = "stream"
    ) -> list[JobHandle]:
        """Submit jobs in order, in blocks; all are validated before the first is sent.

        Raises as `submit` does. QueueFull and Unavailable carry in `accepted` the handles of the jobs that
        went in before: the first ones of the list.
        """
        return self._submit([validated(job, position) for position, job in enumerate(jobs)], confirm)

    def job(self, job_id: UUID | str) -> JobHandle:
        """Return the handle of a job, whichever process submitted it; nothing is asked yet."""
        return JobHandle(self._session, self._session.track(job_id))

    def adapters(self) -> list[str]:
        """Name the adapters that jobs may ask for; one just added shows within a second."""
        return self._session.adapters()

    def _submit(self, specs: Sequence[JobSpec], confirm: Confirm) -> list[JobHandle]:
        handles = self._submitter.append(specs, confirm)
        if confirm == "ledger":
            deadline = time.monotonic() + self._confirm_timeout_s
            for handle in handles:
                handle.wait_admitted(self._confirm_timeout_s, deadline)
        return handles
