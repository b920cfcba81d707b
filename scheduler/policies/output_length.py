"""How long outputs and prompts turn out to be, learned per adapter from jobs that have ended.

Outputs of some tasks are as long as ever, those of others take the same share of what was asked for.

Length prediction for scheduling: Zheng et al., "Response Length Perception and Sequence Scheduling" (NeurIPS
2023) let a model guess; jobs of one adapter are of one task, so that their own past is a good guess here.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from scheduler.policies.types import PendingJob, Revision

MEMORY_JOBS: Final = 64
"""A job's weight falls to 1/e after so many further ones of its adapter."""

PRIOR_JOBS: Final = 4
"""What was asked for counts as so many jobs that used all of it."""

MAX_ADAPTERS: Final = 100_000
"""The adapter heard of least recently is forgotten first; one takes about 300 bytes."""


class _Lengths:
    __slots__ = ("deviation", "num_jobs", "output", "prompt_ratio", "share", "share_deviation")

    def __init__(self) -> None:
        self.num_jobs = 0
        self.output = 0.0
        self.deviation = 0.0
        self.share = 1.0
        self.share_deviation = 0.0
        self.prompt_ratio = 1.0

    def learn(self, output: int, asked: int, prompt_ratio: float) -> None:
        self.num_jobs += 1
        weight = max(1 / self.num_jobs, 1 / MEMORY_JOBS)
        if self.num_jobs > 1:
            self.deviation += weight * (abs(output - self.output) - self.deviation)
            self.share_deviation += weight * (abs(output - self.share * asked) - self.share_deviation)
        self.output += weight * (output - self.output)
        self.share += weight * (output / asked - self.share)
        self.prompt_ratio += weight * (prompt_ratio - self.prompt_ratio)

    def guess(self, asked: int) -> float:
        """Guess by length or by share, whichever has come nearer."""
        if self.share_deviation < self.deviation:
            return self.share * asked
        return min(self.output, asked)


class OutputLengths:
    """Mutable: means of the jobs that ended, the latest counting most."""

    def __init__(self) -> None:
        self._of: OrderedDict[Revision, _Lengths] = OrderedDict()

    def __len__(self) -> int:
        return len(self._of)

    def learn(self, job: PendingJob, prompt_tokens: int, completion_tokens: int) -> None:
        """Take in what a job came to; one that wrote nothing tells nothing."""
        if completion_tokens <= 0:
            return
        lengths = self._of.get(job.revision)
        if lengths is None:
            lengths = self._of[job.revision] = _Lengths()
            if len(self._of) > MAX_ADAPTERS:
                self._of.popitem(last=False)
        self._of.move_to_end(job.revision)
        prompt_ratio = prompt_tokens / max(1, job.prompt_tokens)
        lengths.learn(completion_tokens, max(job.max_tokens, completion_tokens), prompt_ratio)

    def expected(self, job: PendingJob) -> float:
        """Tell how many tokens a job will write, on average."""
        lengths = self._of.get(job.revision)
        if lengths is None:
            return job.max_tokens
        guess = lengths.guess(job.max_tokens)
        return (guess * lengths.num_jobs + job.max_tokens * PRIOR_JOBS) / (lengths.num_jobs + PRIOR_JOBS)

    def at_most(self, job: PendingJob) -> int:
        """Tell how many tokens a job will hardly exceed: the mean and four mean deviations."""
        lengths = self._of.get(job.revision)
        if lengths is None:
            return job.max_tokens
        return min(job.max_tokens, round(self.expected(job) + 4 * lengths.deviation) + 1)

    def prompt_tokens(self, job: PendingJob) -> float:
        """Correct the estimate of a prompt by what prompts of this adapter came to."""
        lengths = self._of.get(job.revision)
        return job.prompt_tokens * (lengths.prompt_ratio if lengths is not None else 1.0)
