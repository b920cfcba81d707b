"""What one decision costs, and how many bytes a queued job takes in memory, at several backlogs.

    python -m benchmarks.decisions [--policy fair] [--jobs 10000 100000 1000000]

A round plans one micro-batch for one worker of four, whose jobs then end; CPU time, median of the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from scheduler.policies import POLICIES, Backlog, PendingJob, PolicyConfig, WorkerCapacity, WorkerView, plan

GOAL_MS = 1.0
GOAL_RATIO = 1.3
NUM_TENANTS, NUM_ADAPTERS, NUM_WORKERS = 100, 1_000, 4
ADAPTERS = [f"adapter{n}" for n in range(NUM_ADAPTERS)]
TENANTS = [f"tenant{n}" for n in range(NUM_TENANTS)]
CAPACITY = WorkerCapacity(
    max_num_seqs=16, kv_tokens=1_000_000, max_model_len=4_096, max_loras=8, max_lora_rank=64
)


class Cost(NamedTuple):
    num_jobs: int
    decision_ms: float
    jobs_per_batch: float
    bytes_per_job: float


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--policy", choices=sorted(POLICIES), default="fair")
    parser.add_argument("--jobs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args(arguments)
    costs = [
        measure(PolicyConfig(policy=options.policy), num_jobs, options.rounds) for num_jobs in options.jobs
    ]
    print(f"{'queued':>10} {'ms a decision':>14} {'jobs in it':>11} {'bytes a job':>12}")
    for cost in costs:
        print(
            f"{cost.num_jobs:>10,} {cost.decision_ms:>14.3f} {cost.jobs_per_batch:>11.1f} "
            f"{cost.bytes_per_job:>12,.0f}"
        )
    times = [cost.decision_ms for cost in costs]
    ratio = max(times) / min(times)
    is_met = max(times) <= GOAL_MS and ratio <= GOAL_RATIO
    print(f"goal: <= {GOAL_MS:g} ms and a ratio <= {GOAL_RATIO:g}; ratio {ratio:.2f}: {is_met}")
    return 0 if is_met else 1


def measure(config: PolicyConfig, num_jobs: int, num_rounds: int) -> Cost:
    """Fill a backlog of many tenants, adapters, classes and deadlines, and plan from it."""
    dice = random.Random(1)
    jobs = itertools.count()
    before = _resident_bytes()
    backlog = Backlog(config)
    for _ in range(num_jobs):
        backlog.add(_job(next(jobs), dice, now=0.0))
    num_bytes = _resident_bytes() - before
    fleet: dict[str, list[PendingJob]] = {f"w{n}": [] for n in range(NUM_WORKERS)}
    device: dict[str, list[str]] = {name: [] for name in fleet}
    spent, sizes, now = [], [], 0.0
    for number in range(num_rounds):
        name = f"w{number % NUM_WORKERS}"
        for ended in fleet[name]:
            backlog.fairness.settle(ended.job_id, ended.prompt_tokens, 40)
            backlog.add(_job(next(jobs), dice, now))
        fleet[name] = []
        views = [_view(one, fleet[one], device[one]) for one in fleet]
        began = time.process_time()
        batches = plan(backlog, views, now)
        spent.append(time.process_time() - began)
        for batch in batches:
            fleet[batch.incarnation] = [*fleet[batch.incarnation], *batch.jobs]
            used = [job.revision for job in batch.jobs if job.revision]
            kept = [one for one in device[batch.incarnation] if one not in used]
            device[batch.incarnation] = list(dict.fromkeys([*used, *kept]))[: CAPACITY.max_loras]
            sizes.append(len(batch.jobs))
        now += 0.05
    return Cost(
        num_jobs, statistics.median(spent) * 1_000, statistics.mean(sizes or [0]), num_bytes / num_jobs
    )


def _job(number: int, dice: random.Random, now: float) -> PendingJob:
    return PendingJob(
        job_id=UUID(int=dice.getrandbits(128)),
        admit_seq=number,
        priority=dice.choice((0, 1, 1, 1, 2)),
        revision=ADAPTERS[min(int(dice.paretovariate(0.6)) - 1, NUM_ADAPTERS - 1)],
        rank=16,
        prompt_tokens=dice.randrange(8, 512),
        max_tokens=128,
        waiting_since=now - dice.random(),
        tenant=TENANTS[int(NUM_TENANTS * dice.random() ** 2)],
        deadline_at=now + dice.uniform(60, 3_600) if dice.random() < 0.2 else None,
        adapter_bytes=10_000_000,
    )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _view(name: str, running: list[PendingJob], device: list[str]) -> WorkerView:
    return WorkerView(
        incarnation=name,
        capacity=CAPACITY,
        target_seqs=CAPACITY.max_num_seqs,
        num_outstanding=len(running),
        outstanding_tokens=sum(job.prompt_tokens + 40 for job in running),
        outstanding_revisions=Counter(job.revision for job in running if job.revision),
        device=device,
    )


if __name__ == "__main__":
    sys.exit(main())
