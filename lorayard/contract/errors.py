"""Every error a producer can meet, in one tree.

LorayardError
├── InvalidJob            a field of the job is wrong (also a ValueError)
├── UnknownAdapter        no pool serves an adapter of this name
│   └── AdapterQuarantined    it exists, but its files failed to load
├── UnknownPool           no pool is registered, or several and none was named
├── UnknownJob            the ledger has no job of this id
├── IdempotencyConflict   the key was used before with another payload, or for a job of another pool
├── ResultExpired         the job ended so long ago that the ledger only remembers its key
├── QueueFull             the backlog is at its bound; carries retry_after_s
│   └── QuotaExceeded         a tenant has submitted as much as it may for now
├── JobFailed             the job ended in a state other than succeeded; carries the result
├── ResultTimeout         no terminal state within the time asked for (also a TimeoutError)
├── Unavailable           Redis cannot be reached (also a ConnectionError)
└── InvalidSignature      a webhook does not verify
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorayard.contract.result import JobResult


class LorayardError(Exception):
    """Anything Lorayard tells a producer has gone wrong; a copy of it can be sent to another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what was said, whatever the class wants at its making; of handles, only their ids."""
        state = self.__dict__.copy()
        if "accepted" in state:
            state["accepted"] = tuple(getattr(one, "id", one) for one in state["accepted"])
        return _remade, (type(self), self.args, state)


def _remade(kind: type[LorayardError], args: tuple[Any, ...], state: dict[str, Any]) -> LorayardError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidJob(LorayardError, ValueError):
    """A field of the job is wrong; the message names it, its value and the remedy."""


class UnknownAdapter(LorayardError):
    """No pool serves an adapter of this name."""


class AdapterQuarantined(UnknownAdapter):
    """The adapter's files failed to load: it serves nobody until a repaired revision is added."""


class UnknownPool(LorayardError):
    """No pool is registered in Redis, or several are and the client named none."""


class UnknownJob(LorayardError):
    """The ledger has no job of this id."""


class IdempotencyConflict(LorayardError):
    """The idempotency key was used before with another payload, or in another pool; the first job stays."""


class ResultExpired(LorayardError):
    """The job ended so long ago that the ledger only remembers its key; it does not run again."""


class QueueFull(LorayardError):
    """The backlog is at its bound: submit again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.accepted: Sequence[Any] = ()
        """The handles of the jobs that `submit_many` had submitted before: the first of its list.

        A handle belongs to its process: where this error was sent to another one, there are their ids.
        """


class QuotaExceeded(QueueFull):
    """A tenant has as many jobs queued, or submitted as many tokens, as it may: others' jobs go in."""

    def __init__(self, message: str, retry_after_s: float, tenant: str) -> None:
        super().__init__(message, retry_after_s)
        self.tenant = tenant


class JobFailed(LorayardError):
    """The job ended in another state than `succeeded`; `result` says which and why."""

    def __init__(self, result: JobResult) -> None:
        reason = f"{result.error.code}: {result.error.message}" if result.error else "no reason recorded"
        super().__init__(f"job {result.job_id} ended {result.state}: {reason}")
        self.result = result


class ResultTimeout(LorayardError, TimeoutError):
    """The job reached no terminal state within the time asked for; it goes on."""


class Unavailable(LorayardError, ConnectionError):
    """Redis cannot be reached; nothing was submitted unless the message says so."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.accepted: Sequence[Any] = ()
        """The handles of the jobs that `submit_many` had submitted before: the first of its list.

        A handle belongs to its process: where this error was sent to another one, there are their ids.
        """


class InvalidSignature(LorayardError):
    """A webhook's signature, timestamp or headers do not verify: drop the request."""
