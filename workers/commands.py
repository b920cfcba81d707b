"""Reads the leader's commands from this incarnation's own stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from redis import Redis

from lorayard.contract.messages import Command
from lorayard.process.service_thread import OnBroken, ServiceThread
from lorayard.transport.outages import is_redis_outage
from workers.engine_host import EngineHost

BLOCK_MS = 1500
"""How long one read waits; a command ends it, and so does `close`."""

BATCH = 100

logger = structlog.get_logger(__name__)


class CommandReader:
    """Obeys the highest term it has seen; what an older leader still sends is ignored.

    Its client is its own: `close` takes the connection from a read that waits.
    """

    def __init__(
        self,
        redis: Redis,
        stream: str,
        host: EngineHost,
        *,
        on_drain: Callable[[], None],
        why_foreign: Callable[[], str | None],
        on_foreign: Callable[[str], None],
        on_broken: OnBroken,
    ) -> None:
        """`why_foreign` says why no leader speaks to this worker; `on_foreign` is told that, and ends it."""
        self._redis = redis
        self._stream = stream
        self._host = host
        self._on_drain = on_drain
        self._why_foreign = why_foreign
        self._on_foreign = on_foreign
        self._term = 0
        self._last_id: bytes | str = "0"
        self._thread = ServiceThread(
            "commands",
            self._read_once,
            on_broken=on_broken,
            is_outage=is_redis_outage,
            wake=redis.connection_pool.disconnect,
        )

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._thread.close(timeout_s=2.0)

    def _read_once(self) -> None:
        """Read what has come; a pool that another ledger has taken has nothing more to say to this worker."""
        try:
            answer: Any = self._redis.xread({self._stream: self._last_id}, count=BATCH, block=BLOCK_MS)
        except Exception:
            if self._thread.stopping.is_set():
                return  # whatever it is that redis-py raises when its connection is closed beside it
            raise
        for entry_id, fields in entries_of(answer):
            self._last_id = entry_id
            try:
                command = Command.from_entry(fields)
            except ValueError as error:
                logger.warning("commands.malformed", entry_id=entry_id, error=str(error))
                continue
            with self._thread.item(entry_id=entry_id, kind=command.kind):
                self.obey(command)
        if (reason := self._why_foreign()) is not None:
            logger.critical("worker.refused", reason=reason)
            self._thread.stop()
            self._on_foreign(reason)

    def obey(self, command: Command) -> None:
        """Carry out one command, unless a later leader has spoken since."""
        if command.term < self._term:
            logger.warning("commands.stale", kind=command.kind, term=command.term, current=self._term)
            return
        self._term = command.term
        match command.kind:
            case "cancel":
                self._host.cancel(frozenset(command.job_ids))
            case "recall":
                self._host.release_waiting(frozenset(command.job_ids))
            case "drain":
                self._on_drain()
            case "prefetch":
                self._host.prefetch(command.revisions)
            case "drop":
                self._host.drop(command.revisions)


def entries_of(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Flatten XREAD's answer for one stream: a list of pairs (RESP2) or a mapping (RESP3)."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [entry for batches in answer.values() for batch in batches for entry in batch]
    return [entry for _, entries in answer for entry in entries]
