"""The policies by name; LORAYARD_POLICY chooses one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from scheduler.policies.backlog import Backlog
from scheduler.policies.coalescer import plan_coalesced
from scheduler.policies.fifo import plan_fifo
from scheduler.policies.types import PlannedBatch, PolicyName, WorkerView

Policy = Callable[[Backlog, Sequence[WorkerView], float], list[PlannedBatch]]

POLICIES: Final[Mapping[PolicyName, Policy]] = {
    "fair": plan_coalesced,
    "grouped": plan_coalesced,
    "fifo": plan_fifo,
}
"""`fair`: tenants by their weight, then class, deadline and age, grouped by adapter. `grouped`: the same with
all jobs as one tenant's, as before there were shares. `fifo`: by age alone."""


def plan(backlog: Backlog, views: Sequence[WorkerView], now: float) -> list[PlannedBatch]:
    """Take jobs out of the backlog by the policy that it is kept for; at most one micro-batch a worker.

    `now` is the monotonic clock that the jobs' `waiting_since` was read from.
    """
    return POLICIES[backlog.config.policy](backlog, views, now)
