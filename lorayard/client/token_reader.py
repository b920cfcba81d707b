"""The one thread that reads the streams of many jobs for those who wait in event loops."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Thread

from redis import Redis

from lorayard.client.stream import BLOCK_S, RawEntry, read_entries
from lorayard.contract.errors import LorayardError
from lorayard.transport.redis_link import RedisLink

ROUND_S = 0.02
"""A stream that somebody begins to read is read within so long, whatever else is being waited for."""

_STOP_S = 2.0

_log = logging.getLogger("lorayard.client")


@dataclass(frozen=True, slots=True, eq=False)
class _Want:
    """What one reader waits for: entries behind the cursor, or none after a while."""

    key: str
    cursor: bytes
    tell: Callable[[list[RawEntry]], None]
    until: float


class TokenReader:
    """Reads on one connection what was asked for; the thread is started on first need and ended by `stop`.

    Nothing is read ahead: who does not ask for more leaves it in Redis.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._changed = Condition()
        self._wants: list[_Want] = []
        self._is_stopping = False
        self._failure: Exception | None = None
        self._thread: Thread | None = None

    def read(
        self, key: str, cursor: bytes, tell: Callable[[list[RawEntry]], None], *, waits: bool = True
    ) -> None:
        """Have `tell` called, in the reader's thread, with what is behind a cursor.

        If there is nothing, with none: at once, or after a quarter of a second if it `waits`. Raises
        LorayardError once the reader has stopped.
        """
        until = time.monotonic() + BLOCK_S if waits else float("-inf")
        with self._changed:
            if self._is_stopping:
                raise LorayardError(
                    f"the token reader has stopped: {self._failure or 'the client is closed'}"
                )
            self._wants.append(_Want(key, cursor, tell, until))
            if self._thread is None:
                self._thread = Thread(target=self._run, name="lorayard-tokens", daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        """Tell all who wait that there is nothing, and end the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout=_STOP_S)

    def _run(self) -> None:
        try:
            with self._link.for_blocking_reads(ROUND_S) as redis:
                while (wants := self._next()) is not None:
                    self._round(redis, wants)
        except Exception as error:  # noqa: BLE001 - whoever reads must hear of anything
            _log.exception("the token reader failed")
            self._failure = error
        with self._changed:
            self._is_stopping = True
            left, self._wants = self._wants, []
        for want in left:
            _tell(want, [])

    def _next(self) -> list[_Want] | None:
        """Wait until somebody wants something; None if it is time to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._wants or self._is_stopping)
            return None if self._is_stopping else list(self._wants)

    def _round(self, redis: Redis, wants: list[_Want]) -> None:
        # Of those who read one stream, each has its round.
        first = {want.key: want for want in reversed(wants)}
        must_hurry = any(want.until == float("-inf") for want in wants)
        cursors = {key: want.cursor for key, want in first.items()}
        found = read_entries(redis, cursors, None if must_hurry else ROUND_S)
        now = time.monotonic()
        done = [(want, entries) for key, want in first.items() if (entries := found.get(key))]
        done += [(want, []) for key, want in first.items() if key not in found and want.until <= now]
        with self._changed:
            for want, _ in done:
                self._wants.remove(want)
        for want, entries in done:
            _tell(want, entries)


def _tell(want: _Want, entries: list[RawEntry]) -> None:
    with suppress(RuntimeError):  # its event loop is closed: nobody waits any more
        want.tell(entries)
