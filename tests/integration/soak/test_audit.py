"""The auditor finds what is planted into a clean run, names it, and finds nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis as redis_py

from lorayard.local import Stack, plain_url
from tests.integration.soak.recorded_run import (
    NEW,
    NUM_JOBS,
    OLD,
    RUN,
    RecordedRun,
    delivery,
    job_id,
    producer_records,
)
from tests.soak.audit import Finding, Source, Verdict, audit


@pytest.fixture(scope="module")
def ledger(servers: Stack, migrated_template: str) -> Iterator[str]:
    """One ledger for the whole file: each test rolls back what it writes."""
    with psycopg.connect(plain_url(servers.postgres.url), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE soak_audit TEMPLATE {migrated_template}")
        yield plain_url(servers.postgres.url_of("soak_audit"))
        connection.execute("DROP DATABASE soak_audit WITH (FORCE)")


@pytest.fixture
def run(ledger: str, tmp_path: Path) -> Iterator[RecordedRun]:
    """A clean run, not yet written down."""
    with psycopg.connect(ledger) as connection:
        recorded = RecordedRun(connection, tmp_path)
        recorded.record()
        yield recorded
        connection.rollback()


@pytest.fixture
def judge(run: RecordedRun, redis_url: str) -> Any:
    """Write a run down and audit it."""

    def judge() -> Verdict:
        run.write()
        return audit(Source(run.folder, "", redis_url, RUN, RUN), run.connection)

    return judge


def _only(verdict: Verdict, kind: str, *words: str) -> None:
    assert verdict.findings
    assert {finding.kind for finding in verdict.findings} == {kind}
    for word in words:
        assert any(word in finding.what for finding in verdict.findings), verdict.findings


def test_a_clean_run_is_clean(judge: Any) -> None:
    verdict = judge()

    assert verdict.findings == ()
    assert verdict.is_prompt
    assert "adapters replaced: 1\n" in verdict.report()
    assert verdict.last_line() == (
        "soak: accepted=6 terminal=6 flushed=0 lost=0 doubled=0 wrong=0 kills=0 "
        "recovery_p99_s=0.0 recovery_all_p99_s=0.0 webhooks_missing=0"
    )


def test_a_deleted_row_is_a_lost_job(run: RecordedRun, judge: Any) -> None:
    for table in ("usage_deltas", "attempts", "jobs"):
        where = "seq = 4" if table == "usage_deltas" else f"job_id = '{job_id(4)}'"
        run.connection.execute(f"DELETE FROM {table} WHERE {where}")
    del run.receiver[4]
    run.producer = [one for one in run.producer if one["n"] != 4 or one["event"] != "told"]

    _only(judge(), "lost", f"job 4 ({job_id(4)}) was accepted and has no row")


def test_a_job_that_a_flush_took_is_counted_apart_unless_the_ledger_had_confirmed_it(
    run: RecordedRun, judge: Any
) -> None:
    for number in (6, 7):
        intent, receipt, *_ = producer_records(number % NUM_JOBS)
        name = {"n": number, "job_id": str(job_id(number))}
        kind = "ledger" if number == 7 else "stream"
        run.producer += [intent | name, receipt | name | {"kind": kind}]
    waiting = [str(job_id(6)), str(job_id(7))]
    run.faults.append({"at": 0.0, "event": "fault", "kind": "flush", "target": "redis", "waiting": waiting})

    verdict = judge()

    assert (verdict.flushed, verdict.accepted, verdict.terminal) == (1, 8, 6)
    _only(verdict, "lost", "job 7")


def test_only_of_a_job_that_a_flush_took_may_a_client_hear_that_nobody_knows_it(
    run: RecordedRun, judge: Any
) -> None:
    """It has a row all the same, because it was submitted once more."""
    run.producer += [one | {"state": "unknown"} for one in run.producer if _is_told(one, 3)]
    _only(judge(), "wrong", "the client of job 3 was told 'unknown'")

    waiting = [str(job_id(3))]
    run.faults.append({"at": 0.0, "event": "fault", "kind": "flush", "target": "redis", "waiting": waiting})
    assert judge().is_clean


def test_a_neighbours_output_is_wrong(run: RecordedRun, judge: Any) -> None:
    run.connection.execute("UPDATE job_outputs SET output = 'old-1' WHERE job_id = %s", (job_id(2),))
    run.producer = [one | {"output": "old-1"} if _is_told(one, 2) else one for one in run.producer]
    run.receiver[2] = delivery(2, output="old-1")
    run.producer = [one for one in run.producer if one["n"] != 2 or one["event"] != "streamed"]

    _only(judge(), "wrong", "job 2", "output is 'old-1', right is 'old-2'")


def test_usage_that_is_charged_twice_is_doubled(run: RecordedRun, judge: Any) -> None:
    run.connection.execute(
        "INSERT INTO adapter_usage (pool, adapter, tenant, hour, jobs, prompt_tokens, completion_tokens)"
        " SELECT pool, adapter, tenant, now(), jobs, prompt_tokens, completion_tokens FROM usage_deltas"
        " WHERE seq = 0"
    )

    _only(judge(), "doubled", "7 jobs charged, 6 used", "35 prompt_tokens charged, 30 used")


def test_usage_that_is_not_charged_is_lost(run: RecordedRun, judge: Any) -> None:
    run.connection.execute("DELETE FROM usage_deltas WHERE seq = 0")

    _only(judge(), "lost", "5 jobs charged, 6 used")


def test_a_dropped_webhook_is_missing(run: RecordedRun, judge: Any) -> None:
    del run.receiver[1]

    _only(judge(), "webhook_missing", "job 1 ended succeeded, no try came")


def test_a_webhook_that_was_only_refused_is_missing(run: RecordedRun, judge: Any) -> None:
    run.receiver[1] |= {"counts": False, "status": 503}

    _only(judge(), "webhook_missing", "job 1 ended succeeded, 1 tries came")


def test_an_altered_webhook_is_wrong(run: RecordedRun, judge: Any) -> None:
    run.receiver[1] = delivery(1, output="altered")

    _only(judge(), "wrong", "the webhook of job 1 says output 'altered', not 'old-1'")


def test_a_webhook_signed_with_another_secret_is_wrong(run: RecordedRun, judge: Any) -> None:
    run.receiver[1] = delivery(1, secret="whsec_b3RoZXI=")

    _only(judge(), "wrong", "the webhook of job 1 is not signed by")


def test_two_bodies_of_one_webhook_are_doubled(run: RecordedRun, judge: Any) -> None:
    run.receiver.append(delivery(1, metadata={}))

    _only(judge(), "doubled", "the webhook of job 1 has 2 bodies and 1 ids")


def test_the_answer_of_an_older_revision_is_wrong(run: RecordedRun, judge: Any) -> None:
    for table in ("jobs", "attempts"):
        run.connection.execute(f"UPDATE {table} SET revision = %s WHERE job_id = %s", (OLD, job_id(5)))
    run.connection.execute("UPDATE job_outputs SET output = 'old-5' WHERE job_id = %s", (job_id(5),))
    run.producer = [one | {"output": "old-5"} if _is_told(one, 5) else one for one in run.producer]
    run.producer = [one for one in run.producer if one["n"] != 5 or one["event"] != "streamed"]
    run.receiver[5] = delivery(5, output="old-5", revision=OLD)

    _only(judge(), "wrong", "job 5", "was answered by an older revision of moving")


def test_a_pin_that_was_not_obeyed_is_wrong(run: RecordedRun, judge: Any) -> None:
    run.connection.execute("UPDATE attempts SET revision = %s WHERE job_id = %s", (NEW, job_id(0)))

    _only(judge(), "wrong", f"is pinned to {OLD} and was answered by {NEW}")


def test_a_job_that_never_ended_is_lost(run: RecordedRun, judge: Any) -> None:
    intent, receipt, *_ = producer_records(0)
    name = {"n": 6, "job_id": str(job_id(6))}
    run.producer += [intent | name, receipt | name]
    run.connection.execute(
        "INSERT INTO jobs (job_id, pool, tenant, adapter, priority, state, has_callback, est_prompt_tokens,"
        " max_tokens, submitted_at) SELECT %s, pool, tenant, adapter, 1, 'queued', false, 1, 1, now()"
        " FROM jobs LIMIT 1",
        (job_id(6),),
    )
    run.connection.execute(
        "INSERT INTO job_inputs (job_id, request, metadata, submission_id)"
        """ VALUES (%s, '{"prompt": "x"}', '{"n": 6, "variant": 0}', %s)""",
        (job_id(6), job_id(6)),
    )

    _only(judge(), "lost", f"job 6 ({job_id(6)}) never ended: it is queued at attempt 0")


def test_an_end_that_its_client_was_never_told_is_lost(run: RecordedRun, judge: Any) -> None:
    run.producer = [one | {"event": "untold"} if _is_told(one, 2) else one for one in run.producer]

    _only(judge(), "lost", "job 2", "ended succeeded, and its client was never told")


def test_a_row_without_an_intent_is_wrong(run: RecordedRun, judge: Any) -> None:
    run.producer = [one for one in run.producer if one["n"] != 3 or one["event"] != "intent"]

    _only(judge(), "wrong", "job 3", "has a row and no intent")


def test_two_answers_of_one_job_are_doubled(run: RecordedRun, judge: Any) -> None:
    run.connection.execute(
        "INSERT INTO attempts (job_id, attempt, incarnation, ended, revision)"
        " SELECT job_id, 2, incarnation, ended, revision FROM attempts WHERE job_id = %s",
        (job_id(3),),
    )
    run.connection.execute("UPDATE usage_deltas SET jobs = 2 WHERE seq = 3")

    _only(judge(), "doubled", "2 attempts of job 3")


def test_two_ends_told_to_a_client_are_doubled(run: RecordedRun, judge: Any) -> None:
    run.producer += [one | {"state": "failed"} for one in run.producer if _is_told(one, 3)]

    verdict = judge()

    told = "were told that job 00000000-0000-0000-0000-000000000004 ended failed and succeeded"
    assert Finding("doubled", f"clients {told}") in verdict.findings


def test_tokens_of_a_fenced_attempt_after_a_newer_one_are_doubled(run: RecordedRun, judge: Any) -> None:
    for one in run.producer:
        if one["n"] == 3 and one["event"] == "streamed":
            one["entries"] = [[1, 0, "ne", False], [2, 0, "new", False], [1, 2, "w", False]]

    _only(judge(), "doubled", "tokens of attempt 1 of job 3", "came after those of attempt 2")


def test_a_leftover_lease_is_named(run: RecordedRun, judge: Any) -> None:
    run.connection.execute("UPDATE workers SET state = 'ready'")

    _only(judge(), "left", "the lease of worker worker-1-w1@here, which is ready")


def test_leftover_entries_of_streams_are_named(run: RecordedRun, judge: Any, redis_url: str) -> None:
    with redis_py.Redis.from_url(redis_url) as redis:
        redis.xadd("lorayard:{p}:jobs:low", {"body": "x"})
        redis.xgroup_create("lorayard:{p}:control", "scheduler", mkstream=True)
        redis.xadd("lorayard:{p}:control", {"body": "x"})
        redis.xreadgroup("scheduler", "leader", {"lorayard:{p}:control": ">"})

    named = "1 stream entries of lorayard:{p}:control were read and not acknowledged"
    _only(judge(), "left", "1 stream entries in lorayard:{p}:jobs:low", named)


def test_leftover_processes_and_memory_files_are_named(judge: Any) -> None:
    code = "import os, sys; os.memfd_create('forgotten'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        env={**os.environ, "SOAK_RUN": RUN},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()

        verdict = judge()

        process.kill()
    memfd = f"memfd /memfd:forgotten (deleted) of process {process.pid}"
    _only(verdict, "left", f"process {process.pid}: ", memfd)


def test_a_recovery_is_measured_from_the_kill_to_the_next_attempts_start(
    run: RecordedRun, judge: Any
) -> None:
    submitted = run.connection.execute(
        "SELECT submitted_at FROM jobs WHERE job_id = %s", (job_id(1),)
    ).fetchone()
    assert submitted is not None
    killed_at = submitted[0].timestamp() + 0.5
    run.connection.execute(
        "UPDATE attempts SET attempt = 2, queue_ms = 12500 WHERE job_id = %s", (job_id(1),)
    )
    run.connection.execute(
        "INSERT INTO attempts (job_id, attempt, incarnation, ended) VALUES (%s, 1, 'w1', 'lost')",
        (job_id(1),),
    )
    kill = {"event": "fault", "kind": "kill", "target": "worker", "part": "worker-1", "pid": 1}
    run.faults.append(kill | {"at": killed_at})

    verdict = judge()

    assert verdict.findings == ()
    assert verdict.kills == 1
    assert verdict.recovery_s == verdict.alone_s == pytest.approx((12.0,), abs=0.01)


def _is_told(record: dict[str, Any], number: int) -> bool:
    return record["event"] == "told" and record["n"] == number
