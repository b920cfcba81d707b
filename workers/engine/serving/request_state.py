"""One request while the engine holds it: a sequence for each of its completions, one output in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workers.engine.core.adapter_stats import RevisionStats
from workers.engine.core.outputs import RequestMetrics, RequestOutput
from workers.engine.core.sequence import SequenceState


class RequestState:
    """Sequences that are still running, and what the others have ended with."""

    __slots__ = ("_ended", "is_started", "request_id", "sequences")

    def __init__(self, sequences: Sequence[SequenceState]) -> None:
        self.request_id = sequences[0].request_id
        self.sequences = list(sequences)
        self.is_started = False
        self._ended: dict[int, RequestOutput] = {}

    def end(self, sequence: SequenceState, output: RequestOutput) -> RequestOutput | None:
        """Take the output of one sequence; return the request's with the last of them, None before."""
        self.sequences.remove(sequence)
        self._ended[sequence.index] = output
        if self.sequences:
            return None
        return _merged([self._ended[index] for index in sorted(self._ended)])


def _merged(parts: Sequence[RequestOutput]) -> RequestOutput:
    """Return one output with all completions in order; the first error is the request's."""
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        outputs=[completion for part in parts for completion in part.outputs],
        metrics=_sum([part.metrics for part in parts]),
        error=next((part.error for part in parts if part.error is not None), None),
    )


def _sum(parts: Sequence[RequestMetrics]) -> RequestMetrics:
    """Add up what the completions cost; the prompt they share counts once."""
    return replace(
        parts[0],
        started_time_s=_earliest([part.started_time_s for part in parts]),
        first_token_time_s=_earliest([part.first_token_time_s for part in parts]),
        finished_time_s=max(part.finished_time_s for part in parts),
        num_completion_tokens=sum(part.num_completion_tokens for part in parts),
        device_ms=sum(part.device_ms for part in parts),
        num_preemptions=sum(part.num_preemptions for part in parts),
        adapter_use=sum((part.adapter_use for part in parts), RevisionStats()),
    )


def _earliest(times_s: Sequence[float | None]) -> float | None:
    return min((time_s for time_s in times_s if time_s is not None), default=None)
