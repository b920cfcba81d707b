"""Chooses jobs for workers by rules alone: no clock, no store and no wire in here."""

from scheduler.policies.backlog import Backlog
from scheduler.policies.deadlines import FleetOutlook
from scheduler.policies.fairness import Fairness, Standing, service_cost
from scheduler.policies.lookahead import lookahead
from scheduler.policies.output_length import OutputLengths
from scheduler.policies.overcommit import ServiceRate, low_water, target_seqs
from scheduler.policies.pace import JobPace
from scheduler.policies.registry import POLICIES, plan
from scheduler.policies.types import (
    AdapterDemand,
    AdapterPlan,
    PendingJob,
    PlannedBatch,
    PolicyConfig,
    PolicyName,
    WorkerCapacity,
    WorkerView,
)

__all__ = [
    "POLICIES",
    "AdapterDemand",
    "AdapterPlan",
    "Backlog",
    "Fairness",
    "FleetOutlook",
    "JobPace",
    "OutputLengths",
    "PendingJob",
    "PlannedBatch",
    "PolicyConfig",
    "PolicyName",
    "ServiceRate",
    "Standing",
    "WorkerCapacity",
    "WorkerView",
    "lookahead",
    "low_water",
    "plan",
    "service_cost",
    "target_seqs",
]
