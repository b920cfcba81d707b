"""What the demo saw, and what of it was not as it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from examples.demo.receiver import Receiver
from examples.demo.workload import Question
from lorayard import JobResult, JobState


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with the result that came back."""

    question: Question
    result: JobResult

    @property
    def succeeded(self) -> bool:
        return self.result.state is JobState.SUCCEEDED

    @property
    def right(self) -> bool:
        return self.succeeded and self.result.output == self.question.answer


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that five witnesses said of one run."""

    asked: int
    answered: Sequence[Answered]
    wall_s: float
    ledger_jobs: int
    ledger_tokens: int
    flower_succeeded: int
    receiver: Receiver

    @property
    def succeeded(self) -> int:
        return sum(answer.succeeded for answer in self.answered)

    @property
    def wrong(self) -> int:
        return sum(not answer.right for answer in self.answered)

    @property
    def webhooks_verified(self) -> int:
        """Terminal states that arrived signed and agree with the client's."""
        states = self.receiver.states
        return sum(states.get(answer.result.job_id) is answer.result.state for answer in self.answered)

    @property
    def tokens(self) -> int:
        return sum(answer.result.completion_tokens for answer in self.answered)

    def problems(self) -> list[str]:
        """Name everything that was lost, wrong or unverified; an empty list is a good run."""
        expectations = {
            "jobs answered": (len(self.answered), self.asked),
            "jobs succeeded": (self.succeeded, self.asked),
            "right answers": (self.asked - self.wrong, self.asked),
            "jobs in the usage of the ledger": (self.ledger_jobs, self.asked),
            "tokens in the usage of the ledger": (self.ledger_tokens, self.tokens),
            "tasks that succeeded in Flower": (self.flower_succeeded, self.asked),
            "webhooks verified": (self.webhooks_verified, self.asked),
            "webhooks refused by the receiver": (self.receiver.refused, 0),
        }
        return [f"{what}: {seen}, not {due}" for what, (seen, due) in expectations.items() if seen != due]

    def last_line(self) -> str:
        """Summarise the run for people and for scripts."""
        return (
            f"demo: jobs={self.asked} succeeded={self.succeeded} wrong={self.wrong} "
            f"webhooks_verified={self.webhooks_verified} flower_tasks={self.flower_succeeded} "
            f"tokens_per_s={self.tokens / self.wall_s:.0f}"
        )
