"""Workers: registered once for each start, alive as long as they renew."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, Literal

from sqlalchemy import Connection, Row, text

from db.arrays import array_literal
from db.losses import HostRecord
from db.records import Aborts, Canary, JobAttempt, WorkerDevice, WorkerEnd, WorkerLimits, WorkerRow
from lorayard.contract.messages import HeldJob

WORKER_COLUMNS = """
    w.incarnation, w.pool, w.hostname, w.state, w.max_num_seqs, w.num_kv_blocks, w.block_size,
    w.max_model_len, w.max_loras, w.max_lora_rank, w.device, w.device_name, w.device_memory_bytes,
    w.driver_version, w.torch_version, w.reason, w.succeeded_jobs, w.store, w.start_s,
    h.died_at, h.in_a_row, h.has_ended, now() AS asked_at,
    extract(epoch FROM l.expires_at - now())::float8 AS lease_left_s
"""

WORKERS_AND_LEASES = """workers w JOIN worker_leases l ON l.incarnation = w.incarnation
    LEFT JOIN worker_hosts h ON h.pool = w.pool AND h.host = coalesce(w.host, w.hostname)"""

_REGISTER = text("""
    INSERT INTO workers (
        incarnation, pool, hostname, state, max_num_seqs, num_kv_blocks, block_size, max_model_len, max_loras,
        max_lora_rank, device, device_name, device_memory_bytes, driver_version, torch_version, reason, host,
        store, start_s
    )
    VALUES (
        :incarnation, :pool, :hostname, :state, :max_num_seqs, :num_kv_blocks, :block_size, :max_model_len,
        :max_loras, :max_lora_rank, :device, :device_name, :device_memory_bytes, :driver_version,
        :torch_version, :reason, :host, :store, CAST(:start_s AS float8)
    )
    ON CONFLICT (incarnation) DO NOTHING
""")

_FIRST_LEASE = text("""
    INSERT INTO worker_leases (incarnation, expires_at)
    VALUES (:incarnation, now() + make_interval(secs => :lease_s))
    ON CONFLICT (incarnation) DO NOTHING
""")

_RENEW = text("""
    UPDATE worker_leases SET expires_at = now() + make_interval(secs => :lease_s)
    WHERE incarnation = :incarnation AND NOT lost
    RETURNING incarnation
""")

_REPORT = text("""
    UPDATE workers
    SET running_jobs = CAST(:running_jobs AS uuid[]), running_attempts = CAST(:running_attempts AS integer[]),
        succeeded_jobs = :succeeded
    WHERE incarnation = :incarnation AND state IN ('ready', 'draining')
""")

_LAST_WORD = text("""
    UPDATE workers
    SET ended_by = :ended_by, step_jobs = CAST(:step_jobs AS uuid[]),
        step_attempts = CAST(:step_attempts AS integer[])
    WHERE incarnation = :incarnation AND state IN ('ready', 'draining')
""")

_HELD = text("""
    SELECT h.job_id, h.attempt, j.job_id IS NOT NULL AS mine, c.job_id IS NOT NULL AS cancelled
    FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS integer[])) AS h(job_id, attempt)
    LEFT JOIN jobs j ON j.job_id = h.job_id AND j.attempt = h.attempt
        AND j.state = 'leased' AND j.incarnation = :incarnation
    LEFT JOIN cancellations c ON c.job_id = h.job_id
    WHERE j.job_id IS NULL OR c.job_id IS NOT NULL
""")

_SET_STATE = text("""
    UPDATE workers SET state = :state
    WHERE incarnation = :incarnation AND state = ANY(CAST(:before AS text[]))
    RETURNING incarnation
""")

_GET = text(f"SELECT {WORKER_COLUMNS} FROM {WORKERS_AND_LEASES} WHERE w.incarnation = :incarnation")  # noqa: S608

_LISTED = text(f"""
    SELECT {WORKER_COLUMNS} FROM {WORKERS_AND_LEASES}
    WHERE w.state IN ('ready', 'draining', 'unhealthy') AND NOT l.lost
    ORDER BY w.pool, w.hostname
""")  # noqa: S608

STATES_BEFORE: dict[str, list[str]] = {
    "draining": ["ready", "draining"],
    "gone": ["ready", "draining", "unhealthy"],
}


class WorkerRepository:
    """One worker's own rows."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def register(
        self,
        incarnation: str,
        pool: str,
        hostname: str,
        limits: WorkerLimits,
        lease_s: float = 10.0,
        *,
        device: WorkerDevice | None = None,
        unhealthy: str | None = None,
        host: str | None = None,
        store: str | None = None,
        start_s: float | None = None,
    ) -> None:
        """Enter a new start of a worker as ready, with its first lease; once more does nothing.

        One that is `unhealthy`, for this reason, gets no jobs. `host` is where it follows others of its name,
        `store` where it reads adapters, `start_s` how long its process took until now.
        """
        self._connection.execute(_FIRST_LEASE, {"incarnation": incarnation, "lease_s": lease_s})
        self._connection.execute(
            _REGISTER,
            {
                "incarnation": incarnation,
                "pool": pool,
                "hostname": hostname,
                "max_num_seqs": limits.max_num_seqs,
                "num_kv_blocks": limits.num_kv_blocks,
                "block_size": limits.block_size,
                "max_model_len": limits.max_model_len,
                "max_loras": limits.max_loras,
                "max_lora_rank": limits.max_lora_rank,
                **asdict(device or WorkerDevice()),
                "state": "ready" if unhealthy is None else "unhealthy",
                "reason": unhealthy,
                "host": host or hostname,
                "store": store,
                "start_s": start_s,
            },
        )

    def renew(self, incarnation: str, lease_s: float = 10.0) -> bool:
        """Prolong the lease; False means lost or unknown: abort everything and start as a new incarnation.

        A lease that ran out may still be renewed until the leader has called the worker lost.
        """
        renewed = self._connection.execute(_RENEW, {"incarnation": incarnation, "lease_s": lease_s})
        return renewed.one_or_none() is not None

    def aborts(self, incarnation: str, held: Sequence[HeldJob | JobAttempt]) -> Aborts:
        """Tell which of the held jobs are cancelled, and which are no longer this worker's."""
        if not held:
            return Aborts()
        rows = self._connection.execute(
            _HELD,
            {
                "incarnation": incarnation,
                "ids": array_literal(job.job_id for job in held),
                "attempts": array_literal(job.attempt for job in held),
            },
        ).all()
        return Aborts(
            cancelled=tuple(row.job_id for row in rows if row.mine),
            not_mine=tuple(JobAttempt(row.job_id, row.attempt) for row in rows if not row.mine),
        )

    def report(self, incarnation: str, held: Sequence[HeldJob], succeeded: int = 0) -> None:
        """Say what is on the device, and how many jobs have succeeded here."""
        running = [job for job in held if job.running]
        self._connection.execute(
            _REPORT,
            {
                "incarnation": incarnation,
                "running_jobs": [job.job_id for job in running],
                "running_attempts": [job.attempt for job in running],
                "succeeded": succeeded,
            },
        )

    def say_end(self, incarnation: str, end: WorkerEnd, in_step: Collection[JobAttempt] = ()) -> None:
        """Say how the worker ended, and what the engine was computing if it died."""
        self._connection.execute(
            _LAST_WORD,
            {
                "incarnation": incarnation,
                "ended_by": end,
                "step_jobs": [pair.job_id for pair in in_step],
                "step_attempts": [pair.attempt for pair in in_step],
            },
        )

    def set_state(self, incarnation: str, state: Literal["draining", "gone"]) -> bool:
        """Announce that the worker takes no more jobs, or has left; False if it is lost already."""
        before = STATES_BEFORE[state]
        moved = self._connection.execute(
            _SET_STATE, {"incarnation": incarnation, "state": state, "before": before}
        )
        return moved.one_or_none() is not None

    def get(self, incarnation: str) -> WorkerRow | None:
        """Read one start of a worker."""
        row = self._connection.execute(_GET, {"incarnation": incarnation}).one_or_none()
        return to_worker(row) if row else None

    def listed(self) -> list[WorkerRow]:
        """List the workers of all pools that have neither left nor been given up."""
        return [to_worker(row) for row in self._connection.execute(_LISTED)]


def to_worker(row: Row[Any]) -> WorkerRow:
    """Make the record of one row of the worker columns."""
    limits = WorkerLimits(
        max_num_seqs=row.max_num_seqs,
        num_kv_blocks=row.num_kv_blocks,
        block_size=row.block_size,
        max_model_len=row.max_model_len,
        max_loras=row.max_loras,
        max_lora_rank=row.max_lora_rank,
    )
    device = WorkerDevice(
        device=row.device,
        device_name=row.device_name,
        device_memory_bytes=row.device_memory_bytes,
        driver_version=row.driver_version,
        torch_version=row.torch_version,
    )
    return WorkerRow(
        row.incarnation,
        row.pool,
        row.hostname,
        row.state,
        limits,
        row.lease_left_s,
        device,
        row.reason,
        _canary(row),
        row.store or row.hostname.rpartition("@")[2],
        row.start_s,
    )


def _canary(row: Row[Any]) -> Canary | None:
    if row.died_at is None or row.succeeded_jobs:
        return None  # nothing has died there, or this start of a worker has shown that the host is sound
    return HostRecord(tuple(row.died_at), row.in_a_row, row.has_ended).canary(row.asked_at)
