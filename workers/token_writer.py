"""Writes the text of running jobs that stream to Redis, apart from everything that must not wait for it."""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

import structlog
from redis import Redis
from redis.exceptions import RedisError

from db.records import JobAttempt
from lorayard.contract.messages import TokenEntry
from lorayard.process.service_thread import ServiceThread
from lorayard.server.replies import append_tokens, send

MAX_UNWRITTEN = 50_000
"""Pieces kept while Redis is away; readers get what was dropped with the result."""
MAX_BATCH = 2_000

logger = structlog.get_logger(__name__)


class Piece(NamedTuple):
    """Text that became certain, and how many tokens and characters of its attempt came before."""

    key: JobAttempt
    token_offset: int
    char_offset: int
    text: str


class TokenWriter:
    """One thread with a connection of its own; what has gathered since its last round trip goes as one.

    An observer: what it cannot write is lost, the oldest first, and readers get it with the result.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._wake = threading.Condition()
        self._unwritten: deque[Piece] = deque(maxlen=MAX_UNWRITTEN)
        self._busy = False
        self._thread = ServiceThread("token-writer", self._step, on_broken=None, wake=self._rouse)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, piece: Piece) -> None:
        """Take a piece; never blocks."""
        with self._wake:
            self._unwritten.append(piece)
            self._wake.notify_all()

    def close(self, timeout_s: float) -> None:
        """Write what is left, for so long as that takes."""
        with self._wake:
            self._wake.wait_for(lambda: not self._unwritten and not self._busy, timeout_s)
        self._thread.close()

    def _rouse(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _step(self) -> None:
        try:
            self._write(self._next_batch())
        finally:
            with self._wake:
                self._busy = False
                self._wake.notify_all()

    def _next_batch(self) -> list[Piece]:
        with self._wake:
            self._wake.wait_for(lambda: self._unwritten or self._thread.stopping.is_set())
            if self._thread.stopping.is_set():
                return []
            self._busy = True
            return [self._unwritten.popleft() for _ in range(min(MAX_BATCH, len(self._unwritten)))]

    def _write(self, batch: list[Piece]) -> None:
        if not batch:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for key, entry in joined(batch).items():
            with self._thread.item(job_id=str(key.job_id), attempt=key.attempt):
                append_tokens(pipeline, key.job_id, [entry])
        try:
            send(pipeline)
        except RedisError as error:
            # Not tried again: a gap is closed by the result, and what comes next is worth more.
            logger.warning("token_writer.redis_unavailable", dropped=len(batch), error=str(error))


def joined(batch: list[Piece]) -> dict[JobAttempt, TokenEntry]:
    """Make one entry of each attempt's pieces: those of a batch follow upon each other."""
    by_key: dict[JobAttempt, list[Piece]] = {}
    for piece in batch:
        by_key.setdefault(piece.key, []).append(piece)
    return {
        key: TokenEntry(
            attempt=key.attempt,
            token_offset=pieces[0].token_offset,
            char_offset=pieces[0].char_offset,
            text="".join(piece.text for piece in pieces),
        )
        for key, pieces in by_key.items()
    }
