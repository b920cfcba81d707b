"""Fills an empty ledger with rows in every state, by the repositories that write them in service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from cryptography.fernet import Fernet

from db.records import Delivery, EndedAttempt, FinishedJob, JobAttempt, RejectedEntry, RevisionRow
from db.repositories.adapters import AdapterRepository
from db.repositories.admission import AdmissionRepository
from db.repositories.jobs import JobRepository
from db.repositories.leases import LeaseRepository
from db.repositories.tenants import TenantRepository
from db.repositories.usage import UsageRepository
from db.repositories.webhooks import WebhookRepository
from db.repositories.workers import WorkerRepository
from db.secrets import SecretBox
from lorayard.contract.messages import BatchJob, HeldJob
from lorayard.contract.result import JobError
from lorayard.contract.states import JobState
from lorayard.contract.structured_outputs import StructuredOutputs
from tests.integration.db.ledger import POOL, Ledger, ended, new_job

URL = "https://hooks.example.com/lorayard?x=1"


@dataclass(frozen=True, slots=True)
class Filled:
    """What was done: jobs that have ended, and the deliveries that were claimed."""

    finished: list[FinishedJob]
    deliveries: list[Delivery]


class _Filler:
    def __init__(self, url: str) -> None:
        self.ledger = Ledger(url)
        self.finished: list[FinishedJob] = []
        self._number = 0

    def id(self) -> UUID:
        """Name the next job, the same in every filling."""
        self._number += 1
        return UUID(f"01900000-0000-7000-8000-{self._number:012x}")

    def admit(self, count: int = 1, **fields: Any) -> list[UUID]:
        jobs = [new_job(self.id(), **fields) for _ in range(count)]
        return [admitted.job_id for admitted in self.ledger.admit(*jobs)]

    def lease(self, incarnation: str, count: int = 1, **fields: Any) -> list[BatchJob]:
        return self.ledger.lease(incarnation, *self.admit(count, **fields))

    def finish(self, incarnation: str, *reports: EndedAttempt) -> None:
        self.finished += self.ledger.finish(incarnation, *reports)


def fill(url: str) -> Filled:
    """Fill a migrated, empty ledger."""
    filler = _Filler(url)
    try:
        _names(filler.ledger)
        _waiting(filler)
        _ends(filler)
        _losses(filler)
        deliveries = _deliveries(filler.ledger)
        _leftovers(filler)
    finally:
        filler.ledger.database.dispose()
    return Filled(filler.finished, deliveries)


def _names(ledger: Ledger) -> None:
    """Tenants with secrets of every age, adapters with revisions of every kind, workers in every state."""
    box = SecretBox([Fernet.generate_key().decode()])
    for name in ("default", "acme", "widgets"):
        ledger.run(TenantRepository, "ensure", name, box.seal_new if name != "widgets" else None)
    ledger.run(TenantRepository, "set_webhook_secret", "acme", box.seal_new())
    ledger.run(TenantRepository, "set_weight", "acme", 2.5)
    for name, digest in (("sql", "aa"), ("sql", "ab"), ("chat", "ac"), ("old", "ad"), ("bad", "ae")):
        revision = RevisionRow(f"sha256:{digest * 32}", 8, ("q_proj", "v_proj"), 4096)
        ledger.run(AdapterRepository, "add_revision", POOL, name, revision)
    ledger.run(AdapterRepository, "remove", POOL, "old")
    ledger.run(AdapterRepository, "quarantine", POOL, f"sha256:{'ae' * 32}", "digest: files changed")
    for incarnation in ("w-ready", "w-draining", "w-gone"):
        ledger.worker(incarnation, 3600.0)


def _waiting(filler: _Filler) -> None:
    """Jobs that wait, in every shape."""
    filler.admit(3)
    for priority in ("high", "normal", "low"):
        filler.admit(priority=priority, tenant="acme", deadline_s=86_400.0)
    filler.admit(
        prompt=None,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "grüße \u2028"},
        ],
        metadata={"b": [1, 2.5, None, True], "a": {"ü": 1e300}, "big": 2**53},
        stop=("\n", "é"),
        stream=True,
        reply_to=None,
    )
    filler.admit(
        adapter="sql", revision=f"sha256:{'ab' * 32}", adapter_scale=-0.25, temperature=0.7, top_p=0.9,
        top_k=40, seed=2**63 - 1, min_p=0.05, repetition_penalty=1.1, presence_penalty=-0.5,
        frequency_penalty=1.5, min_tokens=2, stop_token_ids=(7, 9), include_stop_str_in_output=True,
        ignore_eos=True, skip_special_tokens=False, logit_bias={3: -100.0, 5: 1.5}, bad_words=("bad",),
    )  # fmt: skip
    schema = {"type": "object", "properties": {"z": {"type": "number", "maximum": 1e3}, "a": {}}}
    for form in ({"json": schema}, {"json": '{"type":"boolean"}'}, {"regex": "[a-c]{2}"},
                 {"choice": ["yes", "nö"]}, {"grammar": 'start: "a"'}):  # fmt: skip
        filler.admit(structured_outputs=StructuredOutputs.model_validate(form))


def _ends(filler: _Filler) -> None:
    """One job and more for each end, with webhooks and without."""
    revision = f"sha256:{'aa' * 32}"
    worker = "w-ready"
    callback = {"callback_url": URL, "tenant": "acme"}
    plain, adapted, long, huge, failed, refused, late, cancelled, given_back = (
        filler.lease(worker, **fields)[0]
        for fields in (
            {},
            callback | {"adapter": "sql", "revision": revision, "metadata": {"order": 7}},
            {"tenant": "widgets"},
            callback,
            callback,
            callback,
            callback,
            callback,
            {"tenant": "acme"},
        )
    )
    filler.finish(worker, ended(plain, output="HELLO", finish_reason="stop"))
    filler.finish(
        worker,
        ended(
            adapted,
            output="SELECT 1\n",
            finish_reason="length",
            revision=revision,
            loads=1,
            load_ms=3.5,
            evictions=1,
        ),
        ended(long, output="é" * 5000, finish_reason="length"),
        ended(huge, output="x" * 70_000, finish_reason="length", hits=1),
        ended(failed, JobState.FAILED, error=JobError(code="engine_error", message="it broke: ü")),
        ended(refused, JobState.REJECTED, error=JobError(code="prompt_too_long", message="513 of 512")),
        ended(late, JobState.EXPIRED, error=JobError(code="deadline_passed", message="too late")),
        ended(cancelled, JobState.CANCELLED),
        ended(given_back, JobState.QUEUED),
    )
    (again,) = filler.ledger.lease(worker, given_back.job_id)
    filler.finish(worker, ended(again, output="second try", finish_reason="stop"))
    filler.ledger.run(UsageRepository, "fold")
    filler.finish(worker, ended(filler.lease(worker, 1, tenant="acme")[0], output="after the fold"))
    _ends_without_a_worker(filler, callback)


def _ends_without_a_worker(filler: _Filler, callback: dict[str, Any]) -> None:
    ledger = filler.ledger
    (queued,) = filler.admit(**callback)
    filler.finished.append(ledger.run(JobRepository, "cancel", queued).finished)
    filler.admit(deadline_s=0.001, waited_ms=60_000.0)
    filler.finished += ledger.run(JobRepository, "expire_due", POOL, 10)
    filler.admit(rejection=JobError(code="unknown_adapter", message="no adapter 'x'"), **callback)
    wished = filler.id()
    ledger.run(JobRepository, "cancel", wished)
    ledger.admit(new_job(wished))
    filler.admit(adapter="bad", revision=f"sha256:{'ae' * 32}")
    filler.finished += ledger.run(AdapterRepository, "reject_quarantined", POOL)


def _losses(filler: _Filler) -> None:
    """A job that killed three engines, others that came back from lost and leaving ones, some that run."""
    ledger = filler.ledger
    (killer,) = filler.admit(callback_url=URL, tenant="acme")
    for number in range(3):
        incarnation = ledger.worker(f"w-lost-{number}")
        innocent = filler.lease(incarnation)[0]
        (job,) = ledger.lease(incarnation, killer)
        held = [HeldJob(job_id=job.job_id, attempt=job.attempt, running=True)]
        held.append(HeldJob(job_id=innocent.job_id, attempt=1, running=False))
        ledger.run(WorkerRepository, "report", incarnation, held)
        ledger.run(WorkerRepository, "say_end", incarnation, "engine_died", [JobAttempt(killer, job.attempt)])
        ledger.run(WorkerRepository, "set_state", incarnation, "gone")
        filler.finished += ledger.run(LeaseRepository, "lose_worker", incarnation).finished
    for leaving in ("w-draining", "w-gone"):
        released, kept = filler.lease(leaving, 2, adapter="chat", revision=f"sha256:{'ac' * 32}")
        ledger.run(LeaseRepository, "release", leaving, [(released.job_id, released.attempt)])
        if leaving == "w-gone":
            filler.finish(leaving, ended(kept, output="last words", finish_reason="stop"))
        ledger.run(WorkerRepository, "set_state", leaving, leaving[2:])
    running = filler.lease("w-ready", 2, callback_url=URL, tenant="acme", stream=True)
    ledger.run(JobRepository, "cancel", running[0].job_id)
    beats = [HeldJob(job_id=job.job_id, attempt=job.attempt, running=True) for job in running]
    ledger.run(WorkerRepository, "report", "w-ready", beats)


def _deliveries(ledger: Ledger) -> list[Delivery]:
    """Of the webhooks one is delivered, one dead, one claimed; the others wait, one after a try."""
    claimed: list[Delivery] = []
    while found := ledger.claim(100):
        claimed += found
    sent, dead, retried, _claimed, *others = claimed
    ledger.run(WebhookRepository, "delivered", sent.id, sent.claim, 204)
    ledger.run(WebhookRepository, "dead", dead.id, dead.claim, 410, "HTTP 410 Gone: ü")
    ledger.run(WebhookRepository, "retry", retried.id, retried.claim, 3600.0, 503, "HTTP 503")
    ledger.run(WebhookRepository, "release", [(other.id, other.claim, 0.0) for other in others])
    return claimed


def _leftovers(filler: _Filler) -> None:
    """A wish for a job that never came, an entry that could not be read, a key whose job is gone."""
    ledger = filler.ledger
    ledger.run(JobRepository, "cancel", filler.id())
    unreadable = RejectedEntry("lorayard:{pool-1}:jobs:low", "1-0", b'{"v":9,\x00\xff', "bad v")
    ledger.run(AdmissionRepository, "put_aside", POOL, [unreadable])
