"""Chooses jobs for workers by rules alone: no clock, no store and no wire in here."""

from scheduler.policies.backlog import Backlog
from scheduler.policies.coalescer import plan
from scheduler.policies.lookahead import lookahead
from scheduler.policies.overcommit import ServiceRate, low_water, target_seqs
from scheduler.policies.pace import JobPace
from scheduler.policies.types import (
    AdapterDemand,
    AdapterPlan,
    PendingJob,
    PlannedBatch,
    PolicyConfig,
    WorkerCapacity,
    WorkerView,
)

__all__ = [
    "AdapterDemand",
    "AdapterPlan",
    "Backlog",
    "JobPace",
    "PendingJob",
    "PlannedBatch",
    "PolicyConfig",
    "ServiceRate",
    "WorkerCapacity",
    "WorkerView",
    "lookahead",
    "low_water",
    "plan",
    "target_seqs",
]
