"""Leases: jobs into a worker's hand, and back when it lets them go or is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from db.arrays import array_literal
from db.losses import MAX_STRIKES, Blame, HeldJob, are_suspects, blame, lone_job
from db.records import JobAttempt, LostJobs, Released, WorkerEnd, WorkerRow
from db.repositories.endings import lock_jobs, write_endings
from db.repositories.hosts import HostRepository
from db.repositories.terms import TermRepository
from db.repositories.workers import WORKER_COLUMNS, WORKERS_AND_LEASES, to_worker
from lorayard.contract.messages import BatchJob
from lorayard.contract.trusted import trusted
from lorayard.contract.version import RELEASE

# FOR SHARE: whoever calls the worker lost waits in `workers` until this commits, and then sees these jobs.
# Its lease is not locked: a renewal must never wait for a dispatch.
_WORKER_IS_READY = text(f"""
    SELECT w.incarnation FROM {WORKERS_AND_LEASES}
    WHERE w.incarnation = :incarnation AND w.pool = :pool AND w.state = 'ready' AND NOT l.lost
        AND l.expires_at > now()
    FOR SHARE OF w
""")  # noqa: S608

_LEASE = text("""
    WITH locked AS MATERIALIZED (
        SELECT j.job_id FROM jobs j
        WHERE j.job_id = ANY(CAST(:ids AS uuid[])) AND j.pool = :pool AND j.state = 'queued'
            AND (j.deadline_at IS NULL OR j.deadline_at > now())
            AND NOT EXISTS (SELECT FROM cancellations c WHERE c.job_id = j.job_id)
        ORDER BY j.job_id
        FOR UPDATE
    ), taken AS (
        UPDATE jobs j
        SET state = 'leased', attempt = j.attempt + 1, incarnation = :incarnation, leased_at = now()
        FROM locked WHERE j.job_id = locked.job_id AND j.state = 'queued'
        RETURNING j.*
    )
    SELECT t.job_id, t.attempt, t.tenant, t.adapter, t.revision, t.reply_to, t.has_callback, i.request,
        i.metadata,
        1000 * extract(epoch FROM now() - t.submitted_at)::float8 AS queue_ms,
        extract(epoch FROM t.deadline_at - now())::float8 AS first_token_within_s
    FROM taken t JOIN job_inputs i ON i.job_id = t.job_id
""")

_GIVE_BACK = text("""
    WITH given AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:attempts AS integer[]), CAST(:strikes AS smallint[]),
            CAST(:losses AS smallint[]), CAST(:groups AS uuid[]), CAST(:dead AS boolean[])
        ) AS g(job_id, attempt, strikes, losses, suspect_group, dead)
    ), decided AS (
        SELECT g.*, CASE WHEN c.job_id IS NOT NULL THEN 'cancelled' WHEN g.dead THEN 'dead' ELSE 'queued' END
            AS state
        FROM given g LEFT JOIN cancellations c ON c.job_id = g.job_id
    ), moved AS (
        UPDATE jobs j
        SET state = d.state,
            strikes = coalesce(d.strikes, j.strikes),
            losses = coalesce(d.losses, j.losses),
            suspect_group = coalesce(d.suspect_group, j.suspect_group),
            incarnation = CASE WHEN d.state <> 'queued' THEN j.incarnation END,
            leased_at = CASE WHEN d.state <> 'queued' THEN j.leased_at END,
            ended_at = CASE WHEN d.state <> 'queued' THEN now() END,
            queue_ms = CASE WHEN d.state <> 'queued'
                THEN 1000 * extract(epoch FROM j.leased_at - j.submitted_at)::float8 END,
            error_code = CASE WHEN d.state = 'dead' THEN 'worker_crashed' END
        FROM decided d
        WHERE j.job_id = d.job_id AND j.attempt = d.attempt
            AND j.state = 'leased' AND j.incarnation = :incarnation
        RETURNING j.job_id, j.attempt, j.state, j.strikes, j.losses, j.revision
    ), written AS (
        INSERT INTO attempts (job_id, attempt, incarnation, ended, revision)
        SELECT job_id, attempt, :incarnation, CASE WHEN state = 'queued' THEN :ended ELSE state END, revision
        FROM moved
    )
    SELECT job_id, attempt, state, strikes, losses FROM moved ORDER BY job_id
""")

# Never queues for the table: whoever waited here through a lock that kept renewals out would get in before
# them, and call workers lost that are alive.
_ENTER_VERDICTS = text("LOCK TABLE worker_leases IN ROW EXCLUSIVE MODE NOWAIT")

_VERDICT = text("""
    UPDATE worker_leases l SET lost = true
    WHERE l.incarnation = :incarnation AND NOT l.lost AND (
        l.expires_at <= now()
        OR EXISTS (SELECT FROM workers w WHERE w.incarnation = l.incarnation AND w.state = 'gone')
    )
    RETURNING l.incarnation
""")

# The row as it was says whether the worker had a last word.
_LOSE = text("""
    UPDATE workers w SET state = 'lost' FROM workers was
    WHERE w.incarnation = :incarnation AND was.incarnation = w.incarnation
    RETURNING w.pool, w.hostname, coalesce(w.host, w.hostname) AS host, was.state AS was, w.ended_by,
        w.succeeded_jobs, w.running_jobs, w.running_attempts, w.step_jobs, w.step_attempts, now() AS lost_at
""")

_HOLDS = text("""
    SELECT j.job_id, j.attempt, j.strikes, j.losses, j.suspect_group,
        CASE WHEN j.losses > 0 THEN (
            SELECT count(DISTINCT coalesce(w.host, w.hostname))
            FROM attempts a JOIN workers w ON w.incarnation = a.incarnation
            WHERE a.job_id = j.job_id AND a.ended = 'lost' AND coalesce(w.host, w.hostname) <> :host
        ) ELSE 0 END AS other_hosts
    FROM jobs j WHERE j.incarnation = :incarnation AND j.state = 'leased'
""")

_IS_EXPIRED = """w.pool = :pool AND (
        (w.state IN ('ready', 'draining', 'unhealthy') AND l.expires_at <= now())
        OR (w.state = 'gone' AND w.ended_by <> 'drained')
        OR (w.state = 'gone' AND EXISTS (
            SELECT FROM jobs j WHERE j.incarnation = w.incarnation AND j.state = 'leased'))
    )"""

_EXPIRED_WORKERS = text(f"""
    SELECT {WORKER_COLUMNS} FROM {WORKERS_AND_LEASES}
    WHERE {_IS_EXPIRED}
    ORDER BY w.incarnation
""")  # noqa: S608

# A row that was written has another xmin.
LEADERS_PICTURE = text(f"""
    SELECT CASE WHEN NOT EXISTS (SELECT FROM {WORKERS_AND_LEASES} WHERE {_IS_EXPIRED})
        AND NOT EXISTS (
            SELECT FROM jobs WHERE pool = :pool AND state = 'queued' AND deadline_at <= now())
    THEN concat_ws('|',
        (SELECT term FROM scheduler_terms WHERE pool = :pool),
        (SELECT version FROM catalogues WHERE pool = :pool),
        (SELECT string_agg(concat_ws(' ', kind, name), ',' ORDER BY kind, name) FROM pauses
            WHERE pool IN (:pool, '*')),
        (SELECT string_agg(concat_ws(' ', tenant, xmin), ',' ORDER BY tenant) FROM tenant_quotas),
        (SELECT string_agg(concat_ws(' ', w.incarnation, w.xmin, h.xmin), ',' ORDER BY w.incarnation)
            FROM {WORKERS_AND_LEASES}
            WHERE w.pool = :pool AND w.state IN ('ready', 'draining') AND NOT l.lost
                AND l.expires_at > now()))
    END
""")  # noqa: S608
"""What a leader's round through the ledger would read, in a few words; NULL if it would find something to do.

For `Database.look`, with the pool.
"""

_READY_WORKERS = text(f"""
    SELECT {WORKER_COLUMNS} FROM {WORKERS_AND_LEASES}
    WHERE w.pool = :pool AND w.state = 'ready' AND NOT l.lost AND l.expires_at > now()
    ORDER BY w.incarnation
""")  # noqa: S608

_DRAINING_WORKERS = text(f"""
    SELECT w.incarnation FROM {WORKERS_AND_LEASES}
    WHERE w.pool = :pool AND w.state = 'draining' AND NOT l.lost AND l.expires_at > now()
    ORDER BY w.incarnation
""")  # noqa: S608


class LeaseRepository:
    """Who holds which job; used by the leader, and by a worker that lets go."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def lease(self, pool: str, incarnation: str, job_ids: Sequence[UUID], *, term: int) -> list[BatchJob]:
        """Lease queued jobs to a ready worker; returns those it got, in the order given.

        Jobs no longer queued, cancelled or past their deadline are passed over; an unready worker gets none.
        Raises Deposed if the term is over.
        """
        TermRepository(self._connection).check(pool, term)
        worker = {"incarnation": incarnation, "pool": pool}
        if not job_ids or self._connection.execute(_WORKER_IS_READY, worker).one_or_none() is None:
            return []
        rows = self._connection.execute(_LEASE, worker | {"ids": array_literal(job_ids)}).all()
        place = {job_id: number for number, job_id in enumerate(job_ids)}
        return sorted((_to_batch_job(row) for row in rows), key=lambda job: place[job.job_id])

    def release(self, incarnation: str, pairs: Sequence[tuple[UUID, int]]) -> Released:
        """Take jobs back from a worker without a strike; one that was cancelled meanwhile ends here."""
        given = [Blame(job_id, attempt) for job_id, attempt in pairs]
        moved = self._give_back(incarnation, given, ended="released")
        return Released(_requeued(moved), tuple(self._finish(moved, "")))

    def lose_worker(self, incarnation: str, *, has_ended: bool = False) -> LostJobs:
        """Call a worker lost and take its jobs back; `db.losses` says what that means for each of them.

        `has_ended`: a job has succeeded there, as far as the leader has been told. Acts only if the lease is
        really over, or if the worker has left. Locks its lease, then its row, its host's and its jobs'.
        """
        self._connection.execute(_ENTER_VERDICTS)
        if self._connection.execute(_VERDICT, {"incarnation": incarnation}).one_or_none() is None:
            return LostJobs(lost=False)
        lost = self._connection.execute(_LOSE, {"incarnation": incarnation}).one()
        # A worker of an earlier release that left does not say how: what it ran counts as a loss.
        end: WorkerEnd = "vanished" if lost.was != "gone" else (lost.ended_by or "broken")
        has_ended = has_ended or lost.succeeded_jobs > 0
        hosts = HostRepository(self._connection, lost.pool)
        record = hosts.lock(lost.host)
        held = self._held(incarnation, lost)
        alone = lone_job(held, end)
        is_canary = not has_ended and record.excuses(lost.lost_at, alone)
        blamed = blame(held, end, is_canary=is_canary, is_only_host=not hosts.has_others(lost.host))
        if lost.was != "unhealthy" and end != "drained" and (lost.was != "gone" or lost.ended_by):
            record = record.after_death(
                lost.lost_at, has_ended=has_ended, by_suspects=are_suspects(held, end), lone_job=alone
            )
            hosts.write(lost.host, record)
        moved = self._give_back(incarnation, blamed, ended="lost")
        return LostJobs(True, _requeued(moved), tuple(self._finish(moved, lost.hostname)))

    def expired_workers(self, pool: str) -> list[WorkerRow]:
        """List the workers whose lease is over, and those that left with jobs in hand."""
        return [to_worker(row) for row in self._connection.execute(_EXPIRED_WORKERS, {"pool": pool})]

    def ready_workers(self, pool: str) -> list[WorkerRow]:
        """List the workers that may be given jobs."""
        return [to_worker(row) for row in self._connection.execute(_READY_WORKERS, {"pool": pool})]

    def draining_workers(self, pool: str) -> list[str]:
        """Name the workers that are leaving, by their own will or because somebody wants them to."""
        return list(self._connection.execute(_DRAINING_WORKERS, {"pool": pool}).scalars())

    def _held(self, incarnation: str, lost: Row[Any]) -> list[HeldJob]:
        """List what a worker held, with what it said of it last."""
        running = set(zip(lost.running_jobs, lost.running_attempts, strict=True))
        step = set(zip(lost.step_jobs, lost.step_attempts, strict=True))
        rows = self._connection.execute(_HOLDS, {"incarnation": incarnation, "host": lost.host})
        return [
            HeldJob(
                row.job_id,
                row.attempt,
                row.strikes,
                row.losses,
                row.suspect_group,
                is_running=(row.job_id, row.attempt) in running,
                is_in_step=(row.job_id, row.attempt) in step,
                num_hosts=row.other_hosts + 1,
            )
            for row in rows
        ]

    def _give_back(self, incarnation: str, blamed: Sequence[Blame], *, ended: str) -> Sequence[Row[Any]]:
        if not blamed:
            return []
        lock_jobs(self._connection, [job.job_id for job in blamed])
        return self._connection.execute(
            _GIVE_BACK,
            {
                "incarnation": incarnation,
                "ids": [job.job_id for job in blamed],
                "attempts": [job.attempt for job in blamed],
                "strikes": [job.strikes for job in blamed],
                "losses": [job.losses for job in blamed],
                "groups": [job.group for job in blamed],
                "dead": [job.is_dead for job in blamed],
                "ended": ended,
            },
        ).all()

    def _finish(self, moved: Sequence[Row[Any]], hostname: str) -> list[Any]:
        dead = [row for row in moved if row.state == "dead"]
        finished = write_endings(
            self._connection, [row.job_id for row in dead], [_epitaph(row, hostname) for row in dead]
        )
        cancelled = [row.job_id for row in moved if row.state == "cancelled"]
        return finished + write_endings(self._connection, cancelled)


def _epitaph(row: Row[Any], hostname: str) -> str:
    if row.strikes >= MAX_STRIKES:
        how = f"its worker crashed while running it alone, {row.strikes} times"
    else:
        how = f"{row.losses} workers were lost with it"
    return f"{how} (last on {hostname}): run it alone and look there"


def _requeued(moved: Sequence[Row[Any]]) -> tuple[JobAttempt, ...]:
    return tuple(JobAttempt(row.job_id, row.attempt) for row in moved if row.state == "queued")


def _to_batch_job(row: Row[Any]) -> BatchJob:
    """Make the message of a leased row; it comes from the ledger, so nothing is validated again."""
    return trusted(BatchJob, row._asdict() | {"writer": RELEASE})
