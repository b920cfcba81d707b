"""How the end of an attempt is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lorayard.contract.states import JobState
from tests.unit.workers.batch_jobs import REVISION, batch_job, engine_output
from workers.attempts import ActiveAttempt, StopReason
from workers.engine.core.adapter_stats import RevisionStats
from workers.engine.core.outputs import FinishReason, RequestFailure
from workers.outcomes import outcome_of, outcome_unrun, storable
from workers.requests import request_id


def _held(**changes: object) -> ActiveAttempt:
    held = ActiveAttempt(batch_job(**changes), "task", arrived_at=100.0, deadline_at=None)
    held.started_at = 100.5
    return held


def test_a_finished_request_succeeds_with_its_times_and_counts() -> None:
    held = _held()

    ended = outcome_of(held, engine_output(request_id(held.key)), now=101.0).ended

    assert ended.state is JobState.SUCCEEDED
    assert (ended.output, ended.finish_reason) == ("HELLO", "stop")
    assert (ended.prompt_tokens, ended.completion_tokens, ended.device_ms) == (2, 3, 7.0)
    assert (ended.queue_ms, ended.run_ms) == (510.0, 500.0)
    assert ended.revision == REVISION


@pytest.mark.parametrize("finish_reason", ["stop", "abort"])
def test_what_its_adapters_cost_and_what_chose_its_tokens_go_with_the_end(
    finish_reason: FinishReason,
) -> None:
    held = _held()
    output = engine_output(request_id(held.key), finish_reason)
    use = RevisionStats(loads=2, load_ms=3.5, hits=1, evictions=4)
    chosen_by = {"temperature": 0.0, "repetition_penalty": 1.05}
    output = replace(output, metrics=replace(output.metrics, adapter_use=use), sampling=chosen_by)

    ended = outcome_of(held, output, now=101.0).ended

    assert ended.sampling == chosen_by
    assert (ended.loads, ended.load_ms, ended.hits, ended.evictions) == (2, 3.5, 1, 4)


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (StopReason.CANCELLED, JobState.CANCELLED),
        (StopReason.EXPIRED, JobState.EXPIRED),
        (StopReason.RELEASED, JobState.QUEUED),
        (StopReason.FENCED, JobState.QUEUED),
        (None, JobState.QUEUED),
    ],
)
def test_an_aborted_request_ends_as_its_reason_says(reason: StopReason | None, state: JobState) -> None:
    held = _held()
    held.stop_reason = reason

    aborted = outcome_of(held, engine_output(request_id(held.key), "abort", "HEL"), now=101.0)
    unrun = outcome_unrun(held, now=101.0)

    assert aborted.ended.state is state
    assert aborted.ended.output is None
    assert aborted.ended.device_ms == 7.0
    assert unrun.ended.state is state
    assert unrun.ended.device_ms == 0.0


def test_work_that_was_done_before_the_abort_arrived_counts() -> None:
    held = _held()
    held.stop_reason = StopReason.CANCELLED

    ended = outcome_of(held, engine_output(request_id(held.key), "length"), now=101.0).ended

    assert ended.state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("code", "retryable", "state", "told"),
    [
        ("invalid_prompt", False, JobState.REJECTED, None),
        ("invalid_params", False, JobState.REJECTED, None),
        ("adapter_file", False, JobState.FAILED, False),
        ("adapter_shape", False, JobState.FAILED, False),
        ("adapter_rank", False, JobState.FAILED, False),
        ("adapter_io", True, JobState.QUEUED, True),
        ("adapter_not_found", False, JobState.QUEUED, True),
        ("adapter_digest_mismatch", False, JobState.QUEUED, True),
        ("adapter_too_large", False, JobState.QUEUED, True),  # for this worker, by its own limit
        ("adapter", False, JobState.QUEUED, True),  # nobody knows what it was
        ("all_slots_pinned", False, JobState.QUEUED, None),
        ("non_finite_logits", False, JobState.FAILED, None),
    ],
)
def test_an_engine_error_decides_state_and_blame(
    code: str, retryable: bool, state: JobState, told: bool | None
) -> None:
    held = _held()
    failure = RequestFailure(code, "why\x00", retryable)

    outcome = outcome_of(held, engine_output(request_id(held.key), "error", "", failure), now=101.0)

    assert outcome.ended.state is state
    assert outcome.ended.error is not None
    assert outcome.ended.error.code == code
    assert outcome.ended.error.message == "why�"
    assert (outcome.failure.retryable if outcome.failure else None) is told


def test_a_base_job_blames_no_adapter() -> None:
    held = _held(adapter=None, revision=None)
    failure = RequestFailure("adapter_file", "why", retryable=False)

    assert outcome_of(held, engine_output("x", "error", "", failure), now=101.0).failure is None


def test_text_that_postgres_refuses_is_replaced() -> None:
    assert storable("a\x00b\ud800c") == "a�b?c"
