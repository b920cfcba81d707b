"""What a policy is asked by the simulated leader, ours and its rivals alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from benchmarks.policies.goals import Pool
from benchmarks.policies.hardware import Hardware
from benchmarks.policies.workload import Adapter, Job
from scheduler.policies import WorkerView


class Dispatch(NamedTuple):
    """A micro-batch for one worker."""

    worker: str
    jobs: list[Job]


class Hint(NamedTuple):
    """Which adapters a worker should load ahead, in order, and which may leave it first."""

    worker: str
    prefetch: Sequence[str]
    drop: Sequence[str]


class Setting(NamedTuple):
    """What a policy may know of its pool beforehand."""

    pool: Pool
    hardware: Hardware
    workers: tuple[str, ...]
    adapters: Mapping[str, Adapter]


class Policy(Protocol):
    """Mutable: the jobs that wait, and the rule by which workers get them; times are the simulator's."""

    is_timed: bool
    """What it plans may change by time alone, so that it is asked again while nothing happens."""
    grouping_window: float
    """How much more service one tenant may get than another for the sake of adapters, in weighted tokens."""

    def __len__(self) -> int:
        """Count the waiting jobs."""

    def add(self, job: Job, now: float) -> None:
        """Let a job wait."""

    def remove(self, job: Job) -> None:
        """Forget a waiting job whose deadline has passed."""

    def plan(self, views: Sequence[WorkerView], now: float) -> list[Dispatch]:
        """Take out what is dispatched now."""

    def take_refused(self) -> Sequence[Job]:
        """Return the waiting jobs that were given up since the last call: their deadlines cannot be kept."""

    def ended(self, worker: str, jobs: Sequence[Job], now: float) -> None:
        """Hear which jobs a worker has done with; `is_expired` those that it never began."""

    def hints(self, views: Sequence[WorkerView], now: float) -> Sequence[Hint]:
        """Say what workers should load ahead and give up."""

    def eta_s(self, job: Job, views: Sequence[WorkerView], now: float) -> float | None:
        """Predict how long a waiting job takes from now to its end; None if the policy does not."""

    def retry_after_s(self, num_jobs: int, views: Sequence[WorkerView], now: float) -> float | None:
        """Predict when so many of the jobs that wait will have been dispatched; None if it does not."""

    def succeed(self, now: float) -> Policy:
        """Return what a new leader begins with: the waiting jobs, and what the old one had written down."""
