"""Which jobs are recalled from a worker that cannot begin them, and when an adapter must go for another."""

from __future__ import annotations

from uuid import UUID

import pytest

from db.records import WorkerLimits
from lorayard.contract.messages import HeldJob, Residency
from scheduler.policies import WorkerView
from scheduler.worker_commands import RECALL_AFTER_S, recalls
from scheduler.worker_state import Outstanding, WorkerState
from tests.unit.scheduler.policies.making import worker

LIMITS = WorkerLimits(
    max_num_seqs=2, num_kv_blocks=10, block_size=16, max_model_len=64, max_loras=2, max_lora_rank=8
)
NOW = 100.0
LATE = NOW - RECALL_AFTER_S


def loaded(
    name: str = "busy", *, waiting: int = 3, since: float = LATE, suspect: bool = False
) -> WorkerState:
    """A worker that runs two jobs, with others of adapter `rev` waiting there, the last dispatched last."""
    state = WorkerState(name, "host", LIMITS)
    for number in range(2 + waiting):
        dispatched_at = since - 1.0 + number / (1 + waiting)
        state.give(UUID(int=number), Outstanding(1, "rev", 40, suspect, dispatched_at))
    state.reconcile([HeldJob(job_id=UUID(int=n), attempt=1, running=n < 2) for n in range(2 + waiting)], NOW)
    return state


def recalled(*states: WorkerState, idle: WorkerView | None = None, rank: int = 8) -> dict[str, list[int]]:
    found = recalls([idle or worker("idle")], states, lambda _: rank, NOW)
    return {state.incarnation: [job_id.int for job_id in job_ids] for state, job_ids in found}


def test_what_waits_beyond_what_a_worker_runs_is_recalled_the_latest_first() -> None:
    assert recalled(loaded()) == {"busy": [4, 3, 2]}


def test_no_more_is_recalled_than_the_idle_ones_run_at_once() -> None:
    assert recalled(loaded("a", waiting=6), loaded("b", waiting=5)) == {
        "a": [7, 6, 5, 4, 3, 2],
        "b": [6, 5],
    }


def test_a_job_is_recalled_once_an_attempt() -> None:
    state = loaded()
    state.outstanding[UUID(int=4)].is_recalled = True

    assert recalled(state) == {"busy": [3, 2]}


@pytest.mark.parametrize(
    ("state", "idle", "rank"),
    [
        (loaded(waiting=0), worker("idle"), 8),
        (loaded(since=NOW), worker("idle"), 8),
        (loaded(suspect=True), worker("idle"), 8),
        (loaded(), worker("idle"), 17),
        (loaded(), worker("idle", cooling=("rev",)), 8),
    ],
    ids=["all of them run", "just dispatched", "suspects", "too high a rank", "no file there"],
)
def test_what_no_idle_worker_would_begin_sooner_stays(
    state: WorkerState, idle: WorkerView, rank: int
) -> None:
    assert recalled(state, idle=idle, rank=rank) == {}


def test_a_job_that_was_never_listed_may_still_be_on_its_way() -> None:
    state = loaded()
    state.give(UUID(int=9), Outstanding(1, "rev", 40, is_suspect=False, dispatched_at=0.0))

    assert 9 not in recalled(state)["busy"]


def test_a_worker_that_gave_work_back_gets_none_ahead_for_a_while() -> None:
    state = loaded()
    state.rate.observe(100, NOW)
    state.no_lead_until = NOW + 1.0

    assert state.view(NOW, max_model_len=64, overcommit_s=1.0).target_seqs == 2
    assert state.view(NOW + 1.0, max_model_len=64, overcommit_s=1.0).target_seqs > 2


def test_adapters_go_for_others_only_where_one_had_to_before() -> None:
    state = WorkerState("w", "host", LIMITS)
    told = [Residency(revision=name, tier="host") for name in "abc"]
    state.note_residency(1, told, is_whole=True)
    assert state.num_too_many(5) == 0

    state.note_residency(2, [Residency(revision="a", tier="none")], is_whole=False)

    assert [state.num_too_many(n) for n in (1, 2, 3)] == [0, 1, 2]
