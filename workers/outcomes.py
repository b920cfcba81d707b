"""Judges how an attempt ended: the engine's word, or the worker's own reason for stopping it."""

from __future__ import annotations

from dataclasses import dataclass

from db.records import EndedAttempt, JobAttempt
from lorayard.contract.messages import AdapterFailure
from lorayard.contract.reading import UnreadableRequest
from lorayard.contract.result import JobError
from lorayard.contract.states import JobState
from workers.attempts import ActiveAttempt, StopReason
from workers.engine.core.adapter_stats import RevisionStats
from workers.engine.core.errors import (
    PROVEN_BY_FILES,
    AllSlotsPinned,
    InvalidParams,
    InvalidPrompt,
    RequestError,
)
from workers.engine.core.outputs import RequestFailure, RequestOutput

REFUSALS = frozenset({RequestError.code, InvalidPrompt.code, InvalidParams.code})
"""Codes of requests that no worker could serve as asked."""

_STATE_OF_STOP = {
    StopReason.CANCELLED: JobState.CANCELLED,
    StopReason.EXPIRED: JobState.EXPIRED,
    StopReason.RELEASED: JobState.QUEUED,
    # Should the fence stand open after all, the job goes back rather than being lost.
    StopReason.FENCED: JobState.QUEUED,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt's end, with what it told of its adapter."""

    ended: EndedAttempt
    failure: AdapterFailure | None = None
    refused: EndedAttempt | None = None
    """The end as it was before the ledger refused a value of it."""
    was_spilled: bool = False

    @property
    def key(self) -> JobAttempt:
        """Whose end it is."""
        return JobAttempt(self.ended.job_id, self.ended.attempt)


def outcome_of(held: ActiveAttempt, output: RequestOutput, now: float) -> Outcome:
    """Judge an attempt that the engine has ended."""
    if output.error is not None:
        return _outcome_of_error(held, output, output.error, now)
    if output.outputs and output.outputs[0].finish_reason != "abort":
        # It finished before the abort arrived: the work is done, so it counts.
        return Outcome(_success(held, output, now))
    reason = held.stop_reason or StopReason.RELEASED
    return Outcome(_ended(held, _STATE_OF_STOP[reason], now, output, _stop_error(held, reason)))


def outcome_unrun(held: ActiveAttempt, now: float) -> Outcome:
    """Judge an attempt that was stopped before the engine ever saw it."""
    reason = held.stop_reason or StopReason.RELEASED
    return Outcome(_ended(held, _STATE_OF_STOP[reason], now, error=_stop_error(held, reason)))


def outcome_refused(held: ActiveAttempt, error: RequestError | UnreadableRequest, now: float) -> Outcome:
    """Judge an attempt whose request could not even be put to the engine."""
    return Outcome(_ended(held, JobState.REJECTED, now, error=JobError(code=error.code, message=str(error))))


def outcome_broken(held: ActiveAttempt, error: Exception, now: float) -> Outcome:
    """Judge an attempt that this worker's own code could not deal with: no other would fare better."""
    told = JobError(code="internal", message=storable(f"{type(error).__name__}: {error}; please report it"))
    return Outcome(_ended(held, JobState.FAILED, now, error=told))


def _outcome_of_error(
    held: ActiveAttempt, output: RequestOutput, error: RequestFailure, now: float
) -> Outcome:
    told = JobError(code=error.code, message=storable(error.message))
    if error.code in REFUSALS:
        return Outcome(_ended(held, JobState.REJECTED, now, output, told))
    # Slots that others have pinned say nothing about this adapter, and may be free elsewhere.
    goes_back = error.retryable or error.code == AllSlotsPinned.code
    failure = None
    if held.job.revision is not None and error.code.startswith("adapter"):
        goes_back = error.code not in PROVEN_BY_FILES
        failure = AdapterFailure(
            revision=held.job.revision, code=error.code, message=told.message, retryable=goes_back
        )
    state = JobState.QUEUED if goes_back else JobState.FAILED
    return Outcome(_ended(held, state, now, output, told), failure)


def _success(held: ActiveAttempt, output: RequestOutput, now: float) -> EndedAttempt:
    return _ended(held, JobState.SUCCEEDED, now, output)


def _ended(
    held: ActiveAttempt,
    state: JobState,
    now: float,
    output: RequestOutput | None = None,
    error: JobError | None = None,
) -> EndedAttempt:
    generated = output.outputs[0] if output is not None and output.outputs else None
    started_at = now if held.started_at is None else held.started_at
    use = output.metrics.adapter_use if output is not None else RevisionStats()
    keeps_text = state is JobState.SUCCEEDED and generated is not None
    return EndedAttempt(
        job_id=held.job.job_id,
        attempt=held.job.attempt,
        state=state,
        output=storable(generated.text) if keeps_text and generated is not None else None,
        finish_reason=generated.finish_reason if generated is not None else None,
        sampling=output.sampling if output is not None else None,
        prompt_tokens=output.metrics.num_prompt_tokens if output is not None else 0,
        completion_tokens=output.metrics.num_completion_tokens if output is not None else 0,
        queue_ms=held.job.queue_ms + (started_at - held.arrived_at) * 1000,
        run_ms=(now - started_at) * 1000,
        device_ms=output.metrics.device_ms if output is not None else 0.0,
        error=error,
        revision=held.job.revision,
        loads=use.loads,
        load_ms=use.load_ms,
        hits=use.hits,
        evictions=use.evictions,
    )


def _stop_error(held: ActiveAttempt, reason: StopReason) -> JobError | None:
    if reason is StopReason.EXPIRED:
        within_s = held.job.first_token_within_s or 0.0
        return JobError(
            code="deadline_passed",
            message=f"no token within the {within_s:.3f} s left at dispatch: give the job a later deadline",
        )
    if reason is StopReason.CANCELLED:
        return JobError(code="cancelled", message="cancelled while leased to a worker")
    return None


def storable(text: str) -> str:
    """Replace what Postgres refuses in text (NUL, lone surrogates): a model may well generate it."""
    return text.replace("\x00", "�").encode("utf-8", "replace").decode("utf-8")
