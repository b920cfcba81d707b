"""A job that ends every engine it runs in is found by halves, by the leader and real statements."""

from __future__ import annotations

import math
from contextlib import ExitStack

from lorayard.contract.states import JobState
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import ScriptedWorker, hold, succeed
from tests.polling import eventually

ROWS = 8  # what a scripted worker runs at a time


def test_a_guilty_job_is_alone_at_last_and_no_innocent_is_struck(rig: PoolRig) -> None:
    steps: list[int] = []
    with rig.scheduler(overcommit_s=0.0), ExitStack() as started:

        def sound_worker() -> ScriptedWorker:
            """Start a worker and see it end a job: its host is in no doubt. What it gets next, it holds."""
            worker = started.enter_context(ScriptedWorker(rig))
            rig.wait_for(JobState.SUCCEEDED, *rig.submit())
            eventually(lambda: worker.num_succeeded, what="a job that this one has ended")
            worker.script = hold
            return worker

        def runs_it(worker: ScriptedWorker, num_rows: int) -> bool:
            """Whether the guilty job's group has come; others end, if they are not its company."""
            held = list(worker.held.values())
            if guilty in {job.job_id for job in held}:
                return len(held) == num_rows
            worker.end([end for job in held if (end := succeed(job))])
            return False

        worker = sound_worker()
        guilty, *innocent = rig.submit(ROWS)
        eventually(lambda: len(worker.held) == ROWS, what="all in one step")
        for num_rows in (8, 4, 2, 1, 1, 1):
            eventually(lambda: runs_it(worker, num_rows), what=f"the guilty job among {num_rows}")  # noqa: B023
            spare = sound_worker()
            steps.append(len(worker.held))
            worker.lose_engine()
            worker = spare
        rig.wait_for(JobState.DEAD, guilty)
        worker.script = succeed
        worker.end([end for job in list(worker.held.values()) if (end := succeed(job))])
        rig.wait_for(JobState.SUCCEEDED, *innocent)

    assert len(steps) <= math.log2(ROWS) + 3
    strikes = {
        row.job_id: row.strikes for row in rig.sql("SELECT job_id, strikes FROM jobs WHERE strikes > 0")
    }
    assert strikes == {guilty: 3}
    # Of all deaths only the first, before which nobody was suspected, is held against the host.
    assert [row.n for row in rig.sql("SELECT cardinality(died_at) AS n FROM worker_hosts")] == [1]
