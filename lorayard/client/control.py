"""Questions and cancels to the leaders, through the control streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from redis import Redis

from lorayard.client.directory import PoolDirectory
from lorayard.client.tracked_job import TrackedJob
from lorayard.client.tracker import JobTracker
from lorayard.contract.keys import PoolKeys
from lorayard.contract.messages import PLACE_FIELD, ControlMessage

MAX_CONTROL_ENTRIES = 100_000
"""Bounds the stream while no leader reads it; about 20 MB."""


class ControlClient:
    """Send control messages; answers come on the client's reply stream. Raises redis-py's errors."""

    def __init__(self, client_id: str, directory: PoolDirectory, tracker: JobTracker) -> None:
        self._client_id = client_id
        self._directory = directory
        self._tracker = tracker

    def ask(
        self,
        redis: Redis,
        kind: Literal["cancel", "lookup"],
        jobs: Sequence[TrackedJob],
        *,
        wants_place: bool = False,
    ) -> list[UUID]:
        """Ask for jobs in one round trip and return the requests' ids.

        A job of another process is asked for in every pool.
        """
        pipeline = redis.pipeline(transaction=False)
        requests = [self._tracker.asks(job) for job in jobs]
        beside = {PLACE_FIELD: b"1"} if wants_place else {}
        for job, request_id in zip(jobs, requests, strict=True):
            message = ControlMessage(
                kind=kind, job_id=job.job_id, reply_to=self._client_id, request_id=request_id
            )
            for pool in self._pools_of(job):
                entry = message.to_entry() | beside
                pipeline.xadd(PoolKeys(pool).control, entry, maxlen=MAX_CONTROL_ENTRIES)
        pipeline.execute()
        return requests

    def _pools_of(self, job: TrackedJob) -> tuple[str, ...]:
        if job.place is not None:
            return (job.place.pool,)
        return tuple(pool.pool for pool in self._directory.pools())
