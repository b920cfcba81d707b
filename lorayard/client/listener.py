"""The one thread of a client that reads its reply stream and asks again if replies may be missing."""

from __future__ import annotations

import logging
from threading import Event, Lock, Thread
from typing import Any, cast

from redis import Redis
from redis import exceptions as redis_errors

from lorayard.client.control import ControlClient
from lorayard.client.tracked_job import TrackedJob
from lorayard.client.tracker import JobTracker
from lorayard.contract.errors import UnknownPool
from lorayard.contract.keys import PoolKeys, reply_key
from lorayard.contract.messages import JobReply
from lorayard.transport.redis_link import RedisLink

# The standard library's logger, silent until the producer configures it: the client is a guest there.
_log = logging.getLogger("lorayard.client")

_READ_COUNT = 1000
_BLOCK_MS = 250
_LOOKUPS_PER_ROUND = 64
"""Bounds what a client with many waiting handles asks of a leader: about 250 lookups a second."""
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 1.0
_STOP_S = 2.0
_BEGINNING = b"0-0"


class ReplyListener:
    """Read the reply stream from its beginning; started on first need, stopped by the client's close."""

    def __init__(self, client_id: str, link: RedisLink, tracker: JobTracker, control: ControlClient) -> None:
        self._key = reply_key(client_id)
        self._link = link
        self._tracker = tracker
        self._control = control
        self._cursor = _BEGINNING
        self._stopping = Event()
        self._starting = Lock()
        self._thread: Thread | None = None
        self.unreachable: str | None = None

    @property
    def is_started(self) -> bool:
        """True once the thread was started."""
        return self._thread is not None

    def start(self) -> None:
        """Start the thread unless it runs."""
        with self._starting:
            if self._thread is None and not self._stopping.is_set():
                redis = self._link.for_blocking_reads(_BLOCK_MS / 1000)
                self._thread = Thread(target=self._run, args=(redis,), name="lorayard-replies", daemon=True)
                self._thread.start()

    def dismiss(self) -> None:
        """Let the thread end by itself; it looks up from its blocking read every quarter of a second."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop the thread and wait for its end."""
        self.dismiss()
        with self._starting:
            if self._thread is not None:
                self._thread.join(timeout=_STOP_S)

    def _run(self, redis: Redis) -> None:
        pause_s = _FIRST_PAUSE_S
        try:
            while not self._stopping.is_set():
                try:
                    self._round(redis)
                    pause_s = _FIRST_PAUSE_S
                except (redis_errors.RedisError, UnknownPool) as error:
                    self._interrupted(error)
                    self._stopping.wait(pause_s)
                    pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        except Exception as error:  # noqa: BLE001, waiters must hear of anything
            _log.exception("the reply listener failed")
            self._tracker.fail(error)
        finally:
            redis.close()

    def _round(self, redis: Redis) -> None:
        """Read what has come and ask for what has not."""
        if self.unreachable is not None:
            self._reconnected(redis)
        before = self._cursor
        entries = self._read(redis)
        unclear = [job for _, fields in entries if (job := self._deliver(fields)) is not None]
        self._check_intake(redis, unclear)
        if len(entries) == _READ_COUNT:
            self._check_for_gap(redis, before)
        elif due := self._tracker.due_lookups(_LOOKUPS_PER_ROUND):
            self._rewind_if_recreated(redis)
            for job, request_id in zip(due, self._control.ask(redis, "lookup", due), strict=True):
                self._tracker.forget_question(job, request_id)

    def _read(self, redis: Redis) -> list[tuple[bytes, dict[bytes, bytes]]]:
        reply = cast("list[Any]", redis.xread({self._key: self._cursor}, count=_READ_COUNT, block=_BLOCK_MS))
        if not reply:
            return []
        entries: list[tuple[bytes, dict[bytes, bytes]]] = reply[0][1]
        self._cursor = entries[-1][0]
        return entries

    def _deliver(self, fields: dict[bytes, bytes]) -> TrackedJob | None:
        try:
            return self._tracker.apply(JobReply.from_entry(fields))
        except ValueError as error:
            _log.warning("unreadable reply on %s: %s", self._key, error)
            return None

    def _check_intake(self, redis: Redis, unclear: list[TrackedJob]) -> None:
        """See whether entries still wait in the intake: until then the ledger need not know of them."""
        for job in unclear:
            if job.place is None:
                continue
            stream, entry_id = PoolKeys(job.place.pool).jobs(job.place.priority), job.place.entry_id
            if not redis.xrange(stream, entry_id, entry_id):
                self._tracker.gone_from_intake(job)

    def _check_for_gap(self, redis: Redis, before: bytes) -> None:
        """Behind by a whole block: the entry read last must still be there, else some after it may not."""
        if not redis.xrange(self._key, before, before):
            _log.info("replies after %r may have been trimmed before they were read", before)
            self._tracker.repair_all()

    def _rewind_if_recreated(self, redis: Redis) -> None:
        """Begin anew if the stream's newest entry is older than what was read: it is another stream."""
        newest = cast("list[Any]", redis.xrevrange(self._key, count=1))
        if newest and _order(newest[0][0]) < _order(self._cursor):
            self._cursor = _BEGINNING

    def _interrupted(self, error: Exception) -> None:
        if not self._stopping.is_set() and self.unreachable is None:
            _log.warning("replies interrupted: %s", error)
        self.unreachable = str(error)

    def _reconnected(self, redis: Redis) -> None:
        redis.ping()
        self._rewind_if_recreated(redis)
        self._tracker.repair_all()
        self.unreachable = None
        _log.info("replies resumed")


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)
