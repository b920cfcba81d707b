"""What `lorayard submit` reads and shows."""

from __future__ import annotations

from uuid import UUID

import pytest

from lorayard.cli.submit import parse_metadata, show_result, summary
from lorayard.contract.errors import InvalidJob
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState

DONE = JobResult(
    job_id=UUID(int=1),
    state=JobState.SUCCEEDED,
    output="HELLO [bold]",
    prompt_tokens=3,
    completion_tokens=5,
    queue_ms=12.3,
    run_ms=45.6,
)


@pytest.mark.parametrize("text", ["", "{", "[1]", "5", "null"])
def test_metadata_that_is_no_object_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(InvalidJob, match=r"--metadata .* is no"):
        parse_metadata(text)


def test_metadata_is_a_json_object() -> None:
    assert parse_metadata('{"run": 7}') == {"run": 7}


def test_the_output_alone_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    show_result(DONE, as_json=False)

    shown = capsys.readouterr()
    assert shown.out == "HELLO [bold]\n"
    assert "succeeded, 3 + 5 tokens, queued 12 ms, ran 46 ms" in shown.err


def test_sampling_parameters_that_had_a_say_are_told_whoever_gave_them() -> None:
    chosen_by = {"temperature": 0.0, "top_p": 1.0, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05}
    sampled = DONE.model_copy(update={"sampling": chosen_by})

    assert "3 + 5 tokens, top_k 20, repetition_penalty 1.05, queued" in summary(sampled)


def test_json_is_the_whole_result(capsys: pytest.CaptureFixture[str]) -> None:
    show_result(DONE, as_json=True)

    assert JobResult.model_validate_json(capsys.readouterr().out) == DONE


def test_a_failure_is_told_with_its_reason() -> None:
    error = JobError(code="adapter_rank", message="rank 99 is over 64")
    failed = JobResult(job_id=UUID(int=1), state=JobState.FAILED, error=error)

    assert summary(failed) == f"job {UUID(int=1)} failed, adapter_rank: rank 99 is over 64"
