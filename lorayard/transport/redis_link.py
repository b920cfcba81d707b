"""The way to Redis: pooled connections whose failures are told as `Unavailable`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis import exceptions as redis_errors

from lorayard.contract.errors import Unavailable
from lorayard.contract.wording import without_password
from lorayard.transport.connections import for_blocking_reads, for_commands
from lorayard.transport.redis_url import valid_redis_url
from lorayard.transport.refusals import remedy_of, sentence_of

_REMEDY = "check that it runs and that LORAYARD_REDIS_URL points at it; `lorayard up` starts one"
_NOTHING_SENT = "nothing was submitted"
_PERHAPS_SENT = (
    "what was being sent may or may not have arrived, so submit again with an idempotency_key to be safe"
)

_MIN_READ_TIMEOUT_S = 2.0
"""A blocking read that comes back late is no sign of a lost server."""


class RedisLink:
    """One Redis server as the client reaches it; safe to share between threads."""

    def __init__(self, url: str, timeout_s: float) -> None:
        try:
            self._url = valid_redis_url(url)
        except ValueError as error:
            raise Unavailable(str(error)) from None
        self._timeout_s = timeout_s
        self.display_url = without_password(url)
        self.commands = for_commands(self._url, timeout_s)

    def for_blocking_reads(self, block_s: float, within_s: float | None = None) -> Redis:
        """Make a connection pool of its own for a thread that deals with lost connections itself.

        A server that is silent is given up after `within_s`, if that is sooner than it would be anyway.
        """
        timeout_s = block_s + max(self._timeout_s, _MIN_READ_TIMEOUT_S)
        return for_blocking_reads(self._url, min(timeout_s, within_s or timeout_s), self._timeout_s)

    def close(self) -> None:
        """Close the pooled connections."""
        self.commands.close()

    @contextmanager
    def reaching(self, *, sends: bool) -> Iterator[None]:
        """Turn every redis-py error below into `Unavailable`; `sends` if a job or question goes out."""
        try:
            yield
        except redis_errors.RedisError as error:
            raise self._unavailable(error, sends) from error

    def _unavailable(self, error: redis_errors.RedisError, sends: bool) -> Unavailable:
        reason = sentence_of(error)
        remedy = remedy_of(error)
        if remedy is not None:
            return Unavailable(
                f"Redis at {self.display_url} refuses commands ({reason}): {_NOTHING_SENT}; {remedy}"
            )
        sent = _PERHAPS_SENT if sends and not _never_connected(error) else _NOTHING_SENT
        return Unavailable(f"Redis at {self.display_url} cannot be reached ({reason}): {sent}; {_REMEDY}")


def _never_connected(error: redis_errors.RedisError) -> bool:
    """Tell a connection that was never made, so that nothing can have been sent."""
    return isinstance(error.__context__, OSError) and "connecting" in str(error)
