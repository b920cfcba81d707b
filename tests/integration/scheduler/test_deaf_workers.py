"""Messages that do not arrive: by the fault of a worker, of Redis, and of the job itself."""

from __future__ import annotations

import time
from functools import partial
from urllib.parse import urlsplit, urlunsplit

import pytest
from structlog.testing import capture_logs

from db.records import EndedAttempt
from db.repositories.workers import WorkerRepository
from lorayard.contract.messages import BatchJob
from lorayard.contract.states import JobState
from scheduler import deliveries
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import ScriptedWorker, succeed
from tests.integration.scheduler.tcp_proxy import TcpProxy
from tests.polling import eventually


def through(proxy: TcpProxy, url: str) -> str:
    """Point a URL at the proxy."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{host}:{proxy.port}"))


def test_jobs_of_workers_cut_off_from_the_broker_go_elsewhere_and_they_serve_again_once_they_hear(
    rig: PoolRig,
) -> None:
    port = urlsplit(rig.redis_url).port
    assert port is not None
    with TcpProxy(port) as proxy, capture_logs() as log, rig.scheduler():
        url = through(proxy, rig.redis_url)
        # One still tells what it holds, the other is cut off from Redis altogether; both renew in Postgres.
        with ScriptedWorker(rig, broker_url=url) as mute, ScriptedWorker(rig, redis_url=url) as cut_off:
            rig.wait_for(JobState.SUCCEEDED, *rig.submit(32), timeout_s=30.0)
            assert mute.jobs
            assert cut_off.jobs
            proxy.drop()
            before = len(mute.jobs), len(cut_off.jobs)
            taken = rig.submit(16)
            rig.wait_for(JobState.LEASED, *taken)
            with ScriptedWorker(rig) as heir:
                rig.wait_for(JobState.SUCCEEDED, *taken, timeout_s=60.0)
            rig.database.run(lambda c: WorkerRepository(c).set_state(heir.incarnation, "gone"))
            assert (len(mute.jobs), len(cut_off.jobs)) == before

            proxy.restore()
            eventually(
                lambda: [line["event"] for line in log].count("worker.hears") == 2, 30.0, "both answers"
            )
            rig.wait_for(JobState.SUCCEEDED, *rig.submit(32), timeout_s=30.0)

    deaf = {line["incarnation"] for line in log if line["event"] == "worker.deaf"}
    assert deaf == {mute.incarnation, cut_off.incarnation}
    assert {tuple(row) for row in rig.sql("SELECT strikes, losses FROM jobs")} == {(0, 0)}


def test_a_redis_flushed_six_times_under_load_costs_no_accepted_job(rig: PoolRig) -> None:
    def work(job: BatchJob) -> EndedAttempt | None:
        time.sleep(0.02)
        return succeed(job)

    job_ids = []
    with capture_logs() as log, rig.scheduler(), ScriptedWorker(rig, work), ScriptedWorker(rig, work):
        for _ in range(6):
            wave = rig.submit(40)
            eventually(partial(rig.has_admitted, wave))
            rig.redis.flushdb()
            job_ids += wave
        rig.wait_for(JobState.SUCCEEDED, *job_ids, timeout_s=60.0)

    assert rig.counts() == {"succeeded": len(job_ids)}
    assert [line for line in log if line["event"] == "leader.redis_flushed"]
    assert not [line for line in log if line["event"] == "leader.failed"], "a flush is no failure"


def test_a_job_that_no_worker_can_be_sent_fails_after_six_losses_and_its_neighbours_run(
    rig: PoolRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "FIRST_PATIENCE_S", 0.3)
    monkeypatch.setattr(deliveries, "MAX_PATIENCE_S", 0.5)
    with capture_logs() as log, rig.scheduler(), ScriptedWorker(rig, unreadable="hidden") as worker:
        (lost,) = rig.submit(prompt="hidden")
        rig.wait_for(JobState.SUCCEEDED, *rig.submit(20), timeout_s=30.0)
        rig.wait_for(JobState.FAILED, lost, timeout_s=60.0)
        rig.wait_for(JobState.SUCCEEDED, *rig.submit(5))

    result = rig.get(lost)
    assert result is not None
    assert result.error is not None
    assert result.error.code == "undeliverable"
    sent = [batch for batch in worker.all_batches if lost in {job.job_id for job in batch.jobs}]
    assert len(sent) == deliveries.MAX_LOST
    assert all(len(batch.jobs) == 1 for batch in sent[1:]), "alone from the second time"
    assert not [line for line in log if line["event"] == "leader.failed"]
