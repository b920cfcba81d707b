"""What leaves the ledger: frozen values, never a row that still hangs on a session."""

from db.records.adapters import ListedAdapter, RevisionRow, StoreFailureRow
from db.records.backlog import LeasedRow, PendingRow, QueuedBlock, QueuedGroup
from db.records.jobs import (
    Admitted,
    CancelOutcome,
    DeletedBatch,
    EndedAttempt,
    FinishedJob,
    JobAttempt,
    JobStatus,
    NewJob,
    RejectedEntry,
)
from db.records.leases import LostJobs, Released
from db.records.pauses import EVERY_POOL, PauseKind, PauseRow
from db.records.pools import PoolRow
from db.records.tenants import TenantQuota, TenantRow, TenantServiceRow
from db.records.usage import UsageRow
from db.records.webhooks import Delivery, DeliveryRow
from db.records.workers import (
    Aborts,
    Canary,
    WorkerDevice,
    WorkerEnd,
    WorkerLimits,
    WorkerRow,
    WorkerState,
)

__all__ = [
    "JobAttempt",
    "NewJob",
    "Admitted",
    "FinishedJob",
    "EndedAttempt",
    "CancelOutcome",
    "DeletedBatch",
    "JobStatus",
    "PendingRow",
    "LeasedRow",
    "Released",
    "LostJobs",
    "WorkerDevice",
    "WorkerLimits",
    "WorkerRow",
    "Aborts",
    "Canary",
    "WorkerEnd",
    "WorkerState",
    "UsageRow",
    "RevisionRow",
    "ListedAdapter",
    "StoreFailureRow",
    "Delivery",
    "DeliveryRow",
    "TenantRow",
    "TenantServiceRow",
    "TenantQuota",
    "EVERY_POOL",
    "PauseKind",
    "PauseRow",
    "QueuedBlock",
    "QueuedGroup",
    "PoolRow",
    "RejectedEntry",
]
