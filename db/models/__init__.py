"""The tables of the ledger, one file for each noun."""

from db.models.adapter import Adapter, AdapterRevision, Catalogue, StoreFailure
from db.models.job import Attempt, Cancellation, IntakeReject, Job, JobInput, JobKey, JobOutput
from db.models.pause import Pause
from db.models.pool import Pool
from db.models.table import Table
from db.models.tenant import Tenant, TenantQuota, TenantService
from db.models.usage import AdapterUsage, UsageDelta
from db.models.webhook import WebhookDelivery, WebhookRelay
from db.models.worker import LedgerId, SchedulerTerm, Worker, WorkerHost, WorkerLease

__all__ = [
    "Table",
    "Job",
    "JobInput",
    "JobOutput",
    "JobKey",
    "Attempt",
    "Cancellation",
    "IntakeReject",
    "Adapter",
    "AdapterRevision",
    "Catalogue",
    "StoreFailure",
    "UsageDelta",
    "AdapterUsage",
    "WebhookDelivery",
    "WebhookRelay",
    "Tenant",
    "TenantService",
    "TenantQuota",
    "Worker",
    "WorkerHost",
    "WorkerLease",
    "SchedulerTerm",
    "Pool",
    "Pause",
    "LedgerId",
]
