"""A worker that is stopped in the middle of a commit stalls nobody, and wakes up as one that was given up."""

from __future__ import annotations

import signal
from collections.abc import Callable

from sqlalchemy import text

from db.repositories.leases import LeaseRepository
from tests.integration.workers.questions import questions
from tests.integration.workers.scripted_leader import ScriptedLeader
from tests.integration.workers.worker_process import WorkerProcess
from tests.polling import eventually


def test_a_worker_stopped_in_a_commit_stalls_nobody(
    leader: ScriptedLeader, incarnation: str, start_worker: Callable[..., WorkerProcess]
) -> None:
    held, other = (question.spec for question in questions(2))
    with start_worker(worker_lease_s=2) as worker:
        stopped = worker.incarnation(leader)
        with leader.database.transaction() as connection:
            connection.execute(text("LOCK TABLE job_outputs IN SHARE MODE"))
            job_ids = leader.dispatch(stopped, [held])
            eventually(lambda: _commits(leader, "wait_event_type = 'Lock'"), what="a commit that waits")
            worker.process.send_signal(signal.SIGSTOP)
        try:
            eventually(lambda: _commits(leader, "state = 'idle in transaction'"), what="a commit left open")

            # Now it holds the rows of its job and of itself; they come free by themselves.
            leader.ended(leader.dispatch(incarnation, [other]))
            eventually(lambda: _is_lost(leader, stopped), what="the end of its lease")
            assert leader.states(job_ids) == ["queued"]
        finally:
            worker.process.send_signal(signal.SIGCONT)
        leader.send(incarnation, leader.lease(incarnation, job_ids))
        (result,) = leader.ended(job_ids)
        eventually(lambda: worker.incarnation(leader) != stopped, 30.0, "a new incarnation")

    assert result.output == questions(1)[0].answer
    assert [row.ended for row in leader.attempts(job_ids[0])] == ["lost", "succeeded"]
    (usage,) = leader.sql("SELECT sum(jobs) AS jobs FROM usage_deltas WHERE incarnation = :i", i=stopped)
    assert not usage.jobs


def _commits(leader: ScriptedLeader, condition: str) -> list[object]:
    return leader.sql(
        f"SELECT 1 FROM pg_stat_activity WHERE application_name = 'lorayard-commits' AND {condition}"
    )


def _is_lost(leader: ScriptedLeader, incarnation: str) -> bool:
    return leader.database.run(lambda c: LeaseRepository(c).lose_worker(incarnation)).lost
