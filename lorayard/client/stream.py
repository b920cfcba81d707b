"""A job's text as it is written: read from its stream in Redis, completed from its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from redis import Redis
from redis import exceptions as redis_errors

from lorayard.contract.keys import tokens_key
from lorayard.contract.messages import TokenEntry
from lorayard.contract.result import JobResult
from lorayard.transport.redis_link import RedisLink

RawEntry = tuple[bytes, dict[bytes, bytes]]
"""An entry as Redis gives it: its id and its fields."""

BLOCK_S = 0.25
READ_COUNT = 1000
BEGINNING = b"0-0"
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """The next piece of a job's text.

    `is_restart`: the job runs again, or its stream had gaps; forget what came before, this begins anew.
    """

    text: str
    attempt: int
    is_restart: bool = False


class TokenStream:
    """One reading of one job's stream; mutable: it knows what it has told. Reads nothing itself."""

    def __init__(self, job_id: UUID) -> None:
        self.key = tokens_key(job_id)
        self.cursor = BEGINNING
        self.has_ended = False
        """The attempt is through; what the result has beyond it is the rest."""
        self._attempt = 0
        self._text = ""
        self._is_stale = False  # what was told belongs to an attempt that is over

    def take(self, entries: Sequence[RawEntry]) -> Iterator[StreamEvent]:
        """Yield what entries behind the cursor have that is new, and move it on."""
        for entry_id, fields in entries:
            self.cursor = entry_id
            yield from self._take(TokenEntry.from_entry(fields))

    def rest(self, result: JobResult) -> Iterator[StreamEvent]:
        """Yield what the result has beyond what was told, all of it if that was something else."""
        output = result.output or ""
        is_same = not self._is_stale and output.startswith(self._text)
        new_text = output[len(self._text) :] if is_same else output
        if new_text or not is_same:
            yield StreamEvent(new_text, result.attempt, is_restart=not is_same)

    def _take(self, entry: TokenEntry) -> Iterator[StreamEvent]:
        if entry.attempt < self._attempt:
            return
        if entry.attempt > self._attempt:
            self._is_stale = self._is_stale or bool(self._text)
            self._attempt, self._text = entry.attempt, ""
        self.has_ended = entry.ended
        known = len(self._text) - entry.char_offset
        # Before it: told already. Behind it: something is missing, which only the result can give.
        if known < 0 or known >= len(entry.text):
            return
        new_text = entry.text[known:]
        self._text += new_text
        is_restart, self._is_stale = self._is_stale, False
        yield StreamEvent(new_text, entry.attempt, is_restart)


def read_stream(
    tokens: TokenStream, link: RedisLink, is_settled: Callable[[], bool], deadline: float | None
) -> Iterator[StreamEvent]:
    """Yield what is written until the job has ended, or the monotonic `deadline` has passed."""
    left_s = None if deadline is None else max(BLOCK_S, deadline - time.monotonic())
    with link.for_blocking_reads(BLOCK_S, within_s=left_s) as redis:
        while not tokens.has_ended:
            # What was written before the end was heard of is there to be read after it.
            is_last = is_settled() or (deadline is not None and time.monotonic() >= deadline)
            block_s = None if is_last else BLOCK_S
            entries = read_entries(redis, {tokens.key: tokens.cursor}, block_s).get(tokens.key, [])
            yield from tokens.take(entries)
            if is_last and len(entries) < READ_COUNT:
                return


def read_entries(redis: Redis, cursors: dict[str, bytes], block_s: float | None) -> dict[str, list[RawEntry]]:
    """Read behind the cursors of some streams, after `block_s` at the latest.

    A Redis that is away gives nothing: it comes back, or the wait for the result says what is wrong.
    """
    block_ms = None if block_s is None else int(block_s * 1000)
    try:
        reply = cast("list[Any]", redis.xread(cast("Any", cursors), READ_COUNT, block_ms))
    except redis_errors.RedisError:
        time.sleep(_PAUSE_S)
        return {}
    return {name.decode(): entries for name, entries in reply or ()}
