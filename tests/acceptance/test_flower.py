"""Flower shows every job as its own task, and a revoke there cancels it."""

from __future__ import annotations

import signal
from typing import Any

import httpx

from examples.tiny.tasks import prompt
from lorayard import JobState
from lorayard.contract.tasks import GENERATE, RUN_MICRO_BATCH
from lorayard.local.processes import descendants
from lorayard.server.celery_app import make_app
from tests.acceptance.stack_rig import StackRig
from tests.polling import eventually


def tasks(rig: StackRig, name: str) -> dict[str, dict[str, Any]]:
    with httpx.Client(trust_env=False, timeout=30) as flower:
        answer = flower.get(f"{rig.stack.flower.url}/api/tasks", params={"taskname": name, "limit": 100_000})
    found: dict[str, dict[str, Any]] = answer.raise_for_status().json()
    return found


def revoke(rig: StackRig, task_id: str) -> None:
    with httpx.Client(trust_env=False, timeout=30) as flower:
        flower.post(f"{rig.stack.flower.url}/api/task/revoke/{task_id}").raise_for_status()


def task_worker(rig: StackRig) -> str:
    with httpx.Client(trust_env=False, timeout=30) as flower:
        workers = flower.get(f"{rig.stack.flower.url}/api/workers", params={"refresh": 1}).json()
    return next(name for name in workers if name.startswith("worker-"))


def test_a_job_is_a_task_with_its_adapter_state_run_time_and_worker(rig: StackRig) -> None:
    job = rig.client.submit(prompt("flowery"), adapter="upper", max_tokens=24, tenant="flower")
    assert job.result(60).output == "FLOWERY"

    def finished() -> dict[str, Any] | None:
        task = tasks(rig, GENERATE).get(str(job.id))
        return task if task and task["state"] == "SUCCESS" else None

    task = eventually(finished, 20.0, "the task in Flower")
    assert "'adapter': 'upper'" in task["kwargs"]
    assert task["runtime"] > 0
    assert "worker-" in task["worker"]
    assert "FLOWERY" in task["result"]


def test_micro_batches_are_tasks_too(rig: StackRig) -> None:
    rig.results(rig.ask(22, "flower-batches"))

    def finished() -> list[dict[str, Any]]:
        return [task for task in tasks(rig, RUN_MICRO_BATCH).values() if task["state"] == "SUCCESS"]

    batch = eventually(finished, 20.0, "a micro-batch in Flower")[0]
    assert batch["runtime"] > 0


def test_revoking_a_running_job_in_flower_cancels_it(rig: StackRig) -> None:
    job = rig.client.submit(prompt("endless"), max_tokens=400, ignore_eos=True, tenant="flower", stream=True)
    next(iter(job.stream(timeout=30)))
    engines = [one for name in ("worker-1", "worker-2") for one in descendants(rig.stack.children[name].pid)]
    for engine in engines:  # it shall not end before the worker has heard
        engine.send(signal.SIGSTOP)

    revoke(rig, str(job.id))

    celery = make_app(rig.stack.redis.url)
    try:
        eventually(
            lambda: str(job.id) in str(celery.control.inspect().revoked()), 20.0, "the worker's hearing of it"
        )
    finally:
        for engine in engines:
            engine.send(signal.SIGCONT)
    assert job.result(30, raise_on_failure=False).state is JobState.CANCELLED


def test_flower_shuts_no_worker_down(rig: StackRig) -> None:
    with httpx.Client(trust_env=False, timeout=30) as flower:
        answer = flower.post(f"{rig.stack.flower.url}/api/worker/shutdown/{task_worker(rig)}")

    assert answer.status_code == httpx.codes.FORBIDDEN
    assert rig.stack.ended() == []


def test_revoking_a_queued_job_in_flower_cancels_it(rig: StackRig) -> None:
    for worker in ("worker-1", "worker-2"):
        rig.stack.stop_part(worker)
    try:
        job = rig.client.submit(prompt("unwanted"), adapter="upper", tenant="flower", confirm="ledger")
        kept = rig.client.submit(prompt("wanted"), adapter="upper", max_tokens=24, tenant="flower")

        revoke(rig, str(job.id))

        assert job.result(30, raise_on_failure=False).state is JobState.CANCELLED
    finally:
        for worker in ("worker-1", "worker-2"):
            rig.stack.restart(worker)
    assert kept.result(60).output == "WANTED"
