"""The way to Redis: pooled connections whose failures are told as `Unavailable`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis import exceptions as redis_errors
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from lorayard.contract.errors import Unavailable
from lorayard.contract.wording import without_password
from lorayard.transport.redis_url import connect, valid_redis_url
from lorayard.transport.refusals import remedy_of, sentence_of

_REMEDY = "check that it runs and that LORAYARD_REDIS_URL points at it; `lorayard up` starts one"
_NOTHING_SENT = "nothing was submitted"
_PERHAPS_SENT = (
    "what was being sent may or may not have arrived, so submit again with an idempotency_key to be safe"
)

_MIN_READ_TIMEOUT_S = 2.0
"""A blocking read that comes back late is no sign of a lost server."""
_MAX_CONNECTIONS = 10_000
"""One a thread at work; redis-py's own bound of 100 would fail the 101st thread."""


class RedisLink:
    """One Redis server as the client reaches it; safe to share between threads."""

    def __init__(self, url: str, timeout_s: float) -> None:
        try:
            self._url = valid_redis_url(url)
        except ValueError as error:
            raise Unavailable(str(error)) from None
        self._timeout_s = timeout_s
        self.display_url = without_password(url)
        # Only refused connections are tried again: a timeout repeated would multiply the caller's wait.
        retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 3, (redis_errors.ConnectionError,))
        self.commands = self._connect(retry, timeout_s)

    def for_blocking_reads(self, block_s: float, within_s: float | None = None) -> Redis:
        """Make a connection pool of its own for a thread that deals with lost connections itself.

        A server that is silent is given up after `within_s`, if that is sooner than it would be anyway.
        """
        timeout_s = block_s + max(self._timeout_s, _MIN_READ_TIMEOUT_S)
        return self._connect(Retry(NoBackoff(), 0, ()), min(timeout_s, within_s or timeout_s))

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

    def _connect(self, retry: Retry, timeout_s: float) -> Redis:
        return connect(
            self._url,
            retry=retry,
            socket_timeout=timeout_s,
            socket_connect_timeout=min(self._timeout_s, timeout_s),
            socket_keepalive=True,
            max_connections=_MAX_CONNECTIONS,
        )

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
