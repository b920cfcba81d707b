"""Reads everything addressed to the leader, in one call, and takes it off once it is dealt with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

from redis import Redis

from lorayard.contract.keys import INTAKE_GROUP
from lorayard.contract.messages import BODY_FIELD
from scheduler.leader_context import LeaderContext

CONSUMER: Final = "leader"
"""One name for all leaders, so that consumers do not pile up; terms tell leaders apart."""

BLOCK_JOBS: Final = 500
RECLAIM_COUNT: Final = 1000


class StreamEntry(NamedTuple):
    """One entry as it was read."""

    stream: str
    entry_id: str
    fields: Mapping[bytes, bytes]

    @property
    def name(self) -> str:
        """Tell it from the entries of all streams."""
        return f"{self.stream}/{self.entry_id}"

    @property
    def num_bytes(self) -> int:
        """What the submit guard has counted for it."""
        return len(self.fields.get(BODY_FIELD, b""))


class StreamBatch(NamedTuple):
    """What was read, by its kind; jobs come most urgent first."""

    jobs: list[StreamEntry]
    control: list[StreamEntry]
    events: list[StreamEntry]

    def __bool__(self) -> bool:
        return bool(self.jobs or self.control or self.events)


class LeaderStreams:
    """The streams of one pool, read as one consumer group; raises redis-py's errors and Deposed."""

    def __init__(self, context: LeaderContext) -> None:
        self._context = context
        self._redis: Redis = context.redis
        keys = context.keys
        self._jobs = keys.all_jobs
        self._control = keys.control
        self._events = keys.worker_events
        self._all = (*keys.all_jobs, keys.control, keys.worker_events)
        self._acknowledge = context.script("acknowledge")
        self._make_groups = context.script("make_groups")

    def ensure_groups(self) -> None:
        """Make the consumer groups if they are missing, from the first entry on."""
        self._make_groups(self._all, [INTAKE_GROUP])

    def read(self, block_ms: int | None) -> StreamBatch:
        """Read what is new; with nothing there, wait for as long as allowed (None: not at all)."""
        wanted: dict[Any, Any] = dict.fromkeys(self._all, ">")
        answer: Any = self._redis.xreadgroup(INTAKE_GROUP, CONSUMER, wanted, count=BLOCK_JOBS, block=block_ms)
        return self._sort(_entries(stream.decode(), batch) for stream, batch in answer or ())

    def reclaim(self) -> StreamBatch:
        """Take over what was read and never acknowledged: by a leader that died, or that is deposed."""
        pipeline = self._redis.pipeline(transaction=False)
        for stream in self._all:
            self._autoclaim(pipeline, stream, "0-0")
        firsts = zip(self._all, pipeline.execute(), strict=True)
        return self._sort(self._reclaim_one(stream, first) for stream, first in firsts)

    def acknowledge(self, entries: Sequence[StreamEntry]) -> None:
        """Take entries off for good, and tell what is untold; raises Deposed if they are another leader's."""
        by_stream = sorted(entries, key=lambda entry: entry.stream)
        for stream, group in groupby(by_stream, key=lambda entry: entry.stream):
            counted = stream in self._jobs
            read: list[Any] = []
            for entry in group:
                read += (entry.entry_id, entry.num_bytes if counted else 0)
            with self._context.untold.taken() as untold:
                words = [word for command in untold for word in (len(command), *command)]
                arguments = [INTAKE_GROUP, len(read) // 2, *read, *words]
                self._acknowledge([self._context.keys.intake_bytes, stream], arguments)

    def _reclaim_one(self, stream: str, answer: Any) -> Iterator[StreamEntry]:
        while True:
            # Redis 6.2 answers two items, 7 adds the ids of entries that are gone.
            cursor = answer[0]
            yield from _entries(stream, answer[1])
            if cursor in (b"0-0", "0-0"):
                return
            answer = self._autoclaim(self._redis, stream, cursor)

    @staticmethod
    def _autoclaim(redis: Redis, stream: str, cursor: Any) -> Any:
        return redis.xautoclaim(
            stream, INTAKE_GROUP, CONSUMER, min_idle_time=0, start_id=cursor, count=RECLAIM_COUNT
        )

    def _sort(self, batches: Any) -> StreamBatch:
        found = {stream: [] for stream in self._all}  # type: dict[str, list[StreamEntry]]
        for batch in batches:
            for entry in batch:
                found[entry.stream].append(entry)
        jobs = [entry for stream in self._jobs for entry in found[stream]]
        return StreamBatch(jobs, found[self._control], found[self._events])


def _entries(stream: str, batch: Sequence[tuple[bytes | None, Any]]) -> Iterator[StreamEntry]:
    """Pass over entries that were deleted while they were pending: Redis 6.2 answers nil for them."""
    for entry_id, fields in batch:
        if entry_id is not None and fields is not None:
            yield StreamEntry(stream, entry_id.decode(), fields)
