"""What a policy has to reach, and upon which workloads: set before any policy was tuned by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SEEDS: Final = tuple(range(1, 11))
SKEWS: Final = (0.1, 0.3, 0.6, 1.0)
"""Exponents of the adapters' power law, as S-LoRA has them: 1 is even, 0.1 gives 79 % of jobs to a tenth."""
CVS: Final = (1.0, 2.0, 4.0)
"""Coefficients of variation of the times between arrivals (Gamma); 1 is Poisson."""
DEADLINE_LOADS: Final = (0.7, 0.9, 1.1)
QUEUE_LOADS: Final = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Shares of the pool's capacity at which ETA and `retry_after_s` are judged."""
QUIET_LOAD: Final = 0.5
DEADLINE_SLACK: Final = (2.0, 20.0)
"""A deadline is the job's latency alone on a warm worker, times a number drawn evenly from here."""
SLO_SCALE: Final = 5.0
"""An adapter's SLO is so many times the mean latency of its jobs alone."""
SLO_SHARE_OF_FIFO: Final = 0.5
"""SLO attainment is compared at the load at which FIFO attains this share."""
QUEUED: Final = (10_000, 100_000, 1_000_000)
"""Queued jobs at which a decision's cost is measured."""
PROMPT_WEIGHT: Final = 1.0
OUTPUT_WEIGHT: Final = 2.0
"""Service of a tenant in tokens, weighted as VTC does (Sheng et al., 2024): w_p and w_q."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The workers and adapters of a run."""

    num_workers: int = 4
    max_num_seqs: int = 32
    kv_tokens: int = 24_576
    max_model_len: int = 1024
    slots: int = 16
    """More than S-LoRA's D, or its rule would be vLLM's."""
    host_adapters: int = 64
    """Adapters that a worker's host cache holds, those in slots included."""
    num_adapters: int = 256
    """Four times the slots of all workers."""
    ranks: tuple[int, ...] = (8, 16, 32, 64)

    @property
    def backlog(self) -> int:
        """The standing backlog: ten times slots times batch, on each worker."""
        return 10 * self.slots * self.max_num_seqs * self.num_workers


@dataclass(frozen=True, slots=True)
class Matrix:
    """How much of each workload one seed runs."""

    pool: Pool = Pool()
    standing_jobs: int = 4_500
    """Ended in a run with a standing backlog, of which the first third warms up."""
    arriving_jobs: int = 2_000
    """Of a run with arrivals."""
    slo_trials: int = 9
    """Runs of FIFO that look for its load."""
    flood_jobs: int = 20_000
    """Of the tenant that floods."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure's limit. Median and worst over all seeds have to keep it."""

    name: str
    limit: float
    unit: str
    is_floor: bool = False
    """The figure must not be below the limit; else not above it."""

    def is_met(self, value: float) -> bool:
        """Whether a figure keeps the limit; one that is not a number does not."""
        return value >= self.limit if self.is_floor else value <= self.limit

    def worst(self, values: list[float]) -> float:
        """Return the value farthest on the wrong side; NaN if there is one."""
        if any(value != value for value in values):
            return float("nan")
        return min(values) if self.is_floor else max(values)


BYTES_TO_SLORA: Final = Goal("bytes loaded / S-LoRA clustering", 0.7, "x")
BYTES_TO_LRU: Final = Goal("bytes loaded / FIFO + LRU", 0.5, "x")
BYTES_TO_BELADY: Final = Goal("bytes loaded / Belady on our order", 1.1, "x")
QUIET_BYTES_TO_LRU: Final = Goal("bytes loaded without backlog / FIFO + LRU", 1.0, "x")
THROUGHPUT: Final = Goal("throughput / all adapters resident", 0.95, "x", is_floor=True)
DEADLINES_TO_EDF: Final = Goal("deadlines kept / clairvoyant EDF", 0.95, "x", is_floor=True)
DEADLINES_TO_FIFO: Final = Goal("deadlines kept / FIFO", 1.0, "x", is_floor=True)
SLO_TO_FIFO: Final = Goal("SLO attained / FIFO at its 50 %", 1.5, "x", is_floor=True)
SERVICE_GAP: Final = Goal("service gap of two tenants / bound", 1.0, "x")
SERVICE_GAP_AFTER_CHANGE: Final = Goal("service gap across a leader change / bound", 1.0, "x")
FLOODED_WAIT: Final = Goal("micro-batches a worker before a flooded tenant's job", 2.0, "")
ETA_ERROR: Final = Goal("ETA, median error", 0.25, "")
RETRY_ERROR: Final = Goal("retry_after_s, median error", 0.25, "")
DECISION_MS: Final = Goal("processor time of a decision, per micro-batch", 1.0, "ms")
DECISION_RATIO: Final = Goal("decision at the longest queue / at the shortest", 1.3, "x")
