"""Jobs of a simulated run: by the power law and the Gamma arrivals that S-LoRA was measured with."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from benchmarks.policies.goals import DEADLINE_SLACK, Pool
from benchmarks.policies.hardware import Hardware

MIN_TOKENS: Final = 8
MAX_TOKENS: Final = 512
"""Prompts and answers are evenly between these."""
_MAX_TOKENS_ASKED: Final = (64, 128, 256, 512)
"""What producers ask for at most: the next of these."""
NORMAL: Final = 1
"""The middle priority class."""


class Adapter(NamedTuple):
    """One adapter of a pool."""

    name: str
    rank: int
    size: int
    """In bytes."""


@dataclass(slots=True, eq=False)
class Job:
    """Mutable: one job, what only the simulator knows of it, and what became of it. Times in seconds."""

    number: int
    job_id: UUID
    adapter: Adapter
    prompt_tokens: int
    output_tokens: int
    """How many it will really generate: no policy is told, the clairvoyant one excepted."""
    max_tokens: int
    submitted_at: float
    tenant: str = "tenant"
    priority: int = NORMAL
    deadline_at: float | None = None
    alone_s: float = 0.0
    """Its latency alone on a worker with its adapter in a slot."""
    dispatched_at: float | None = None
    started_at: float | None = None
    """When its first forward pass began."""
    ended_at: float | None = None
    is_expired: bool = False
    """It was refused, or its deadline passed before its first token."""
    worker: int = -1
    finish_step: int = 0

    @property
    def is_in_time(self) -> bool:
        """Whether it ended before its deadline; one that was refused or expired did not."""
        return self.ended_at is not None and (self.deadline_at is None or self.ended_at <= self.deadline_at)


class Population:
    """The adapters of a pool and how often each is asked for; the same for every policy of a seed."""

    def __init__(self, pool: Pool, hardware: Hardware, skew: float, seed: int) -> None:
        """`skew` is the power law's exponent a: the share of the first x of all adapters is x ** a."""
        self._random = random.Random(f"{seed} {skew}")
        self._hardware = hardware
        self._skew = skew
        ranks = [pool.ranks[number % len(pool.ranks)] for number in range(pool.num_adapters)]
        self._random.shuffle(ranks)
        self.adapters = [
            Adapter(f"adapter-{number:05}", rank, hardware.adapter_bytes(rank))
            for number, rank in enumerate(ranks)
        ]
        """The most popular first."""
        self.capacity = pool.num_workers * hardware.jobs_per_s(
            pool.max_num_seqs, pool.slots, _mean_tokens(), sum(pool.ranks) / len(pool.ranks)
        )
        """Jobs per second of the whole pool, its batches full and all adapters resident."""
        self._num_jobs = 0

    def job(self, submitted_at: float, *, tenant: str = "tenant", priority: int = NORMAL) -> Job:
        """Draw the next job."""
        draw = self._random
        number, self._num_jobs = self._num_jobs, self._num_jobs + 1
        index = min(int(len(self.adapters) * draw.random() ** (1 / self._skew)), len(self.adapters) - 1)
        adapter = self.adapters[index]
        prompt, output = draw.randint(MIN_TOKENS, MAX_TOKENS), draw.randint(MIN_TOKENS, MAX_TOKENS)
        return Job(
            number=number,
            job_id=UUID(int=number),
            adapter=adapter,
            prompt_tokens=prompt,
            output_tokens=output,
            max_tokens=next(asked for asked in _MAX_TOKENS_ASKED if output <= asked),
            submitted_at=submitted_at,
            tenant=tenant,
            priority=priority,
            alone_s=self._hardware.alone_s(prompt, output, adapter.rank),
        )

    def arrivals(self, num_jobs: int, load: float, cv: float, *, with_deadlines: bool = False) -> list[Job]:
        """Draw jobs that arrive at a share of the pool's capacity, Gamma times between them."""
        jobs: list[Job] = []
        now, shape = 0.0, 1 / cv**2
        scale = 1 / (load * self.capacity * shape)
        for _ in range(num_jobs):
            now += self._random.gammavariate(shape, scale)
            job = self.job(now)
            if with_deadlines:
                job.deadline_at = now + job.alone_s * self._random.uniform(*DEADLINE_SLACK)
            jobs.append(job)
        return jobs


def _mean_tokens() -> tuple[float, float]:
    mean = (MIN_TOKENS + MAX_TOKENS) / 2
    return mean, mean
