"""How a real worker leaves, dies, and comes back as another incarnation."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import pytest

from db.records import WorkerDevice
from db.repositories.leases import LeaseRepository
from db.repositories.pools import PoolRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.keys import worker_queue
from lorayard.contract.states import JobState
from tests.integration.workers.questions import questions
from tests.integration.workers.scripted_leader import ENDLESS, ScriptedLeader
from tests.integration.workers.task_events import TaskEvents
from tests.integration.workers.worker_process import WorkerProcess, is_running
from tests.polling import eventually
from tests.unit.lorayard.process.signal_bursts import send_burst
from workers.launch import GAVE_UP

StartWorker = Callable[..., WorkerProcess]


@pytest.fixture(scope="module")
def hurried(start_worker: StartWorker) -> Iterator[WorkerProcess]:
    """A worker with room for one adapter and no time to drain; the last of its two tests drains it."""
    with start_worker(max_loras=1, max_cpu_loras=1, drain_grace_s=0.2) as worker:
        yield worker


def test_a_drain_lets_running_jobs_end_and_shows_it_and_gives_the_others_back(
    leader: ScriptedLeader, start_worker: StartWorker
) -> None:
    with start_worker(max_num_seqs=1, drain_grace_s=120) as worker, TaskEvents(leader.redis_url) as events:
        incarnation = worker.incarnation(leader)
        (running,) = leader.admit([ENDLESS.model_copy(update={"max_tokens": 800})])
        micro_batch = leader.send(incarnation, leader.lease(incarnation, [running]))
        # A heartbeat would tell as well, but the job may have ended before the next one.
        events.await_event("task-started", running)
        with worker.stopped_engine():
            (waiting,) = leader.dispatch(incarnation, [questions(1)[0].spec])
            events.await_event("task-received", waiting)
            worker.process.send_signal(signal.SIGTERM)
            worker.await_draining()

        assert worker.process.wait(150) == 0
        assert events.await_event("task-succeeded", running)
        assert events.await_event("task-succeeded", micro_batch)

    assert leader.states([running, waiting]) == ["succeeded", "queued"]
    assert [row.ended for row in leader.attempts(waiting)] == ["released"]
    assert _state_of(leader, incarnation) == "gone"
    assert leader.redis.keys(f"*{worker_queue(incarnation)}*") == []
    assert any(event.draining for event in leader.events(incarnation))


def test_an_adapter_that_was_evicted_is_charged_with_it_when_it_comes_back(
    leader: ScriptedLeader, hurried: WorkerProcess
) -> None:
    asked = {question.spec.adapter: question.spec for question in questions(22)}
    first, second = list(asked.values())[:2]
    incarnation = hurried.incarnation(leader)
    for spec in (first, second, first):
        leader.ended(leader.dispatch(incarnation, [spec.model_copy(update={"tenant": "evicting"})]))

    used = leader.sql(
        "SELECT adapter, sum(loads) AS loads, sum(evictions) AS evictions FROM usage_deltas"
        " WHERE tenant = 'evicting' GROUP BY adapter"
    )
    assert {row.adapter: (row.loads, row.evictions) for row in used} == {
        first.adapter: (2, 1),
        second.adapter: (1, 0),
    }


def test_a_drain_gives_back_what_outlasts_the_grace(leader: ScriptedLeader, hurried: WorkerProcess) -> None:
    incarnation = hurried.incarnation(leader)
    (endless,) = leader.dispatch(incarnation, [ENDLESS])
    leader.await_running(incarnation, endless)

    leader.command(incarnation, "drain")
    assert hurried.process.wait(20) == 0

    assert leader.states([endless]) == ["queued"]
    (attempt,) = leader.attempts(endless)
    assert attempt.ended == "released"
    assert attempt.device_ms > 0


def test_bursts_of_signals_end_three_workers_within_their_grace(
    leader: ScriptedLeader, start_worker: StartWorker
) -> None:
    with ExitStack() as started:
        workers, incarnations, jobs = [], [], []
        for _ in range(3):
            workers.append(started.enter_context(start_worker(drain_grace_s=1)))
            incarnations.append(workers[-1].incarnation(leader))
        for incarnation in incarnations:  # none computes while another starts
            jobs += leader.dispatch(incarnation, [ENDLESS])
            leader.await_running(incarnation, jobs[-1])

        for worker in workers:
            send_burst(worker.process)

        assert [worker.process.wait(60) for worker in workers] == [0, 0, 0]

    assert leader.states(jobs) == ["queued"] * 3


def test_a_burst_of_signals_ends_a_worker_that_is_still_loading(start_worker: StartWorker) -> None:
    with start_worker() as worker:
        eventually(worker.engine_pids, 60.0, "the engine's process")
        engines = worker.engine_pids()

        send_burst(worker.process)

        assert worker.process.wait(30) == 0
        eventually(lambda: not any(map(is_running, engines)), what="the engine's end")


def test_a_worker_registers_what_it_computes_on(
    leader: ScriptedLeader, worker: WorkerProcess, incarnation: str
) -> None:
    row = leader.database.run(lambda c: WorkerRepository(c).get(incarnation))

    assert row is not None
    assert row.device == WorkerDevice("cpu", torch_version=version("torch"))
    assert (row.state, row.reason) == ("ready", None)
    pools = {pool.pool: pool for pool in leader.database.run(lambda c: PoolRepository(c).listed())}
    assert pools[leader.pool].dtype == "float32"


def test_a_worker_with_another_tokenizer_than_its_pools_others_is_refused_by_name(
    leader: ScriptedLeader,
    worker: WorkerProcess,
    incarnation: str,
    start_worker: StartWorker,
    model: Path,
    tmp_path: Path,
) -> None:
    other = shutil.copytree(model, tmp_path / "model")
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (other / "generation_config.json").write_text('{"eos_token_id": 2, "min_length": 3}')
    another = start_worker()
    another._environment["LORAYARD_MODEL"] = str(other)

    with another:
        assert another.process.wait(90) == GAVE_UP

    said = [json.loads(line) for line in another.log_path.read_text().splitlines() if line.startswith("{")]
    (refused,) = [line["reason"] for line in said if line["event"] == "worker.refused"]
    assert f"the tokenizer in {other} (tokenizer.json" in refused
    assert [line["reason"] for line in said if line["event"] == "worker.gone"] == [
        "its pool does not take it"
    ]
    (warned,) = [line for line in said if line["event"] == "generation_config.not_applied"]
    assert (warned["process"], warned["worker"], warned["parameters"]) == (
        "engine",
        "worker-1",
        ["min_length"],
    )
    assert leader.database.run(lambda c: WorkerRepository(c).get(incarnation)) is not None


def test_a_killed_worker_leaves_no_engine_behind(leader: ScriptedLeader, start_worker: StartWorker) -> None:
    with start_worker() as worker:
        worker.await_ready()
        engines = worker.engine_pids()
        assert engines

        worker.process.kill()

        eventually(lambda: not any(map(is_running, engines)), what="the engine's end")


def test_a_lost_lease_ends_the_incarnation_and_begins_another(
    leader: ScriptedLeader, worker: WorkerProcess, incarnation: str
) -> None:
    (endless,) = leader.dispatch(incarnation, [ENDLESS])
    leader.await_running(incarnation, endless)
    engines = worker.engine_pids()

    leader.sql("UPDATE worker_leases SET expires_at = now() WHERE incarnation = :i", i=incarnation)
    lost = leader.database.run(lambda c: LeaseRepository(c).lose_worker(incarnation))
    successor = worker.incarnation(leader)

    assert [pair.job_id for pair in lost.requeued] == [endless]
    assert successor != incarnation
    assert not any(map(is_running, engines))
    assert leader.states([endless]) == ["queued"]
    (question,) = questions(1)
    assert leader.ended(leader.dispatch(successor, [question.spec]))[0].output == question.answer


def test_rows_of_a_dead_engines_step_are_suspects_and_one_that_dies_alone_is_struck(
    leader: ScriptedLeader, worker: WorkerProcess, incarnation: str
) -> None:
    leader.sql("DELETE FROM worker_hosts")  # what other tests have killed here says nothing of this host
    together = leader.dispatch(incarnation, [ENDLESS, ENDLESS, ENDLESS])
    leader.await_running(incarnation, *together)

    successor = _kill_engine(leader, worker, incarnation)
    rows = leader.sql("SELECT strikes, suspect_group FROM jobs WHERE job_id = ANY(:ids)", ids=together)
    assert [row.strikes for row in rows] == [0, 0, 0]
    assert len({row.suspect_group for row in rows} - {None}) == 2

    leader.send(successor, leader.lease(successor, together[:1]))
    leader.await_running(successor, together[0])
    last = _kill_engine(leader, worker, successor)
    (row,) = leader.sql("SELECT strikes FROM jobs WHERE job_id = :id", id=together[0])
    assert row.strikes == 1
    (question,) = questions(1)
    (result,) = leader.ended(leader.dispatch(last, [question.spec]))
    assert result.state is JobState.SUCCEEDED


def test_a_warm_shutdown_by_celerys_control_is_a_drain(
    leader: ScriptedLeader, start_worker: StartWorker
) -> None:
    with start_worker(drain_grace_s=120) as worker, TaskEvents(leader.redis_url) as events:
        incarnation = worker.incarnation(leader)
        odd = {"__type__": "nothing that kombu knows", "__value__": 1}
        (marked,) = leader.dispatch(
            incarnation, [questions(1)[0].spec.model_copy(update={"metadata": {"odd": odd}})]
        )
        leader.ended([marked], 60.0)
        (running,) = leader.dispatch(incarnation, [ENDLESS.model_copy(update={"max_tokens": 500})])
        events.await_event("task-started", running)
        with worker.stopped_engine():
            leader.shut_down(incarnation)
            worker.await_draining()

        assert worker.process.wait(150) == 0
    assert leader.states([marked, running]) == ["succeeded", "succeeded"]
    (row,) = leader.sql("SELECT ended_by FROM workers WHERE incarnation = :i", i=incarnation)
    assert row.ended_by == "drained"


def _kill_engine(leader: ScriptedLeader, worker: WorkerProcess, incarnation: str) -> str:
    """Kill the engine and take its jobs back; returns the next incarnation."""
    os.kill(worker.engine_pids()[0], signal.SIGKILL)
    eventually(lambda: _state_of(leader, incarnation) == "gone", what="the incarnation's end")
    leader.database.run(lambda c: LeaseRepository(c).lose_worker(incarnation))
    return worker.incarnation(leader)


def _state_of(leader: ScriptedLeader, incarnation: str) -> str:
    row = leader.database.run(lambda c: WorkerRepository(c).get(incarnation))
    return "" if row is None else row.state
