"""Judges webhooks by what receivers got: missing, altered, wrongly signed or told in two ways."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections import defaultdict
from collections.abc import Iterator

from tests.soak.audit.evidence import TERMINAL, Evidence, JobRow, Record
from tests.soak.audit.verdict import Finding

COMPARED = (
    "state",
    "output",
    "attempt",
    "prompt_tokens",
    "completion_tokens",
    "tenant",
    "adapter",
    "revision",
)


def judge_webhooks(evidence: Evidence) -> Iterator[Finding]:
    """Find what receivers were not told, or not told rightly."""
    by_number: dict[int, list[Record]] = defaultdict(list)
    for delivery in evidence.deliveries:
        by_number[int(delivery["path"].strip("/"))].append(delivery)
    for job in evidence.jobs:
        got = by_number.pop(job.number if job.number is not None else -1, [])
        if job.has_callback and job.state in TERMINAL and not any(delivery["counts"] for delivery in got):
            tries = f"{len(got)} tries came" if got else "no try came"
            yield Finding("webhook_missing", f"job {job.number} ended {job.state}, {tries}")
        yield from _judge(job, got, evidence.secrets.get(job.tenant, ""))
    for number in by_number:
        yield Finding("wrong", f"a webhook came for job {number}, which has no row")


def _judge(job: JobRow, deliveries: list[Record], secret: str) -> Iterator[Finding]:
    bodies = {delivery["body"] for delivery in deliveries}
    ids = {delivery["headers"].get("webhook-id") for delivery in deliveries}
    if len(bodies) > 1 or len(ids) > 1:
        yield Finding(
            "doubled", f"the webhook of job {job.number} has {len(bodies)} bodies and {len(ids)} ids"
        )
    for delivery in deliveries:
        body = base64.b64decode(delivery["body"])
        if not _is_signed(body, delivery["headers"], secret):
            yield Finding("wrong", f"the webhook of job {job.number} is not signed by {job.tenant}'s secret")
    for body in map(base64.b64decode, sorted(bodies)):
        yield from _contents(job, json.loads(body))


def _contents(job: JobRow, event: Record) -> Iterator[Finding]:
    said = event["data"]
    if event["type"] != f"job.{job.state}" or said["job_id"] != str(job.job_id):
        yield Finding("wrong", f"the webhook of job {job.number} says {event['type']} of {said['job_id']}")
    for field in COMPARED:
        if said.get(field) != getattr(job, field):
            yield Finding(
                "wrong",
                f"the webhook of job {job.number} says {field} {said.get(field)!r}, "
                f"not {getattr(job, field)!r}",
            )


def _is_signed(body: bytes, headers: dict[str, str], secret: str) -> bool:
    """Check a signature by the Standard Webhooks specification."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = b".".join(
        (headers.get("webhook-id", "").encode(), headers.get("webhook-timestamp", "").encode(), body)
    )
    right = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return any(hmac.compare_digest(right, one) for one in headers.get("webhook-signature", "").split())
