"""States and their transitions are one whole."""

from __future__ import annotations

import pytest

from lorayard.contract.states import TRANSITIONS, JobState


def test_every_state_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(JobState)


@pytest.mark.parametrize("state", list(JobState))
def test_a_terminal_state_is_one_without_a_way_out(state: JobState) -> None:
    assert state.is_terminal == (not TRANSITIONS[state])


def test_every_state_can_be_reached_from_queued() -> None:
    reached = {JobState.QUEUED}
    while new := {after for state in reached for after in TRANSITIONS[state]} - reached:
        reached |= new

    assert reached == set(JobState)


def test_only_a_leased_job_succeeds_or_dies_and_one_that_cannot_be_given_to_a_worker_fails() -> None:
    for end in (JobState.SUCCEEDED, JobState.DEAD):
        assert [state for state in JobState if end in TRANSITIONS[state]] == [JobState.LEASED]
    before = [state for state in JobState if JobState.FAILED in TRANSITIONS[state]]
    assert before == [JobState.QUEUED, JobState.LEASED]
