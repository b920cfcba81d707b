"""A small clean run of a soak, as its producers, receivers and the ledger would have recorded it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

RUN = "recorded"
TENANT = f"{RUN}-ash"
SECRET = "whsec_" + base64.b64encode(b"the tenant's secret").decode()
BEGAN = datetime(2026, 11, 1, 12, tzinfo=UTC)
WORKER = "w1"
NUM_JOBS = 6
OLD, NEW = "sha256:old", "sha256:new"

_JOB = """
    INSERT INTO jobs (job_id, pool, tenant, adapter, revision, priority, state, attempt, incarnation,
        has_callback, est_prompt_tokens, max_tokens, submitted_at, ended_at, prompt_tokens, completion_tokens,
        finish_reason)
    VALUES (%(id)s, 'p', %(tenant)s, 'moving', %(revision)s, 1, 'succeeded', 1, 'w1', true, 1, 9, %(at)s,
        %(end)s, 5, %(tokens)s, 'stop')
"""
_INPUT = """
    INSERT INTO job_inputs (job_id, request, metadata, submission_id)
    VALUES (%(id)s, '{"prompt": "x"}', %(metadata)s, %(id)s)
"""
_OUTPUT = "INSERT INTO job_outputs (job_id, output) VALUES (%(id)s, %(output)s)"
_ATTEMPT = """
    INSERT INTO attempts (job_id, attempt, incarnation, ended, revision, prompt_tokens, completion_tokens,
        queue_ms)
    VALUES (%(id)s, 1, 'w1', 'succeeded', %(revision)s, 5, %(tokens)s, 10)
"""
_USAGE = """
    INSERT INTO usage_deltas (incarnation, seq, part, pool, tenant, adapter, jobs, prompt_tokens,
        completion_tokens)
    VALUES ('w1', %(number)s, 1, 'p', %(tenant)s, 'moving', 1, 5, %(tokens)s)
"""
_WORKER = """
    INSERT INTO workers (incarnation, pool, hostname, state, registered_at, max_num_seqs, num_kv_blocks,
        block_size, max_model_len, max_loras, max_lora_rank)
    VALUES ('w1', 'p', 'worker-1-w1@here', 'gone', %(at)s, 8, 8, 8, 8, 8, 8)
"""
_LEASE = "INSERT INTO worker_leases (incarnation, expires_at) VALUES ('w1', %(at)s)"


@dataclass
class RecordedRun:
    """Mutable: a test spoils it, then writes it down."""

    connection: psycopg.Connection[Any]
    folder: Path
    producer: list[dict[str, Any]] = field(default_factory=list)
    receiver: list[dict[str, Any]] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)

    def record(self) -> None:
        """Fill the ledger and the records of a run in which all went well; the adapter moved after job 2."""
        execute = self.connection.execute
        execute(_WORKER, {"at": BEGAN})
        execute(_LEASE, {"at": BEGAN})
        for number in range(NUM_JOBS):
            values = job_values(number)
            for statement in (_JOB, _INPUT, _OUTPUT, _ATTEMPT, _USAGE):
                execute(statement, values)
            self.producer += producer_records(number)
            self.receiver.append(delivery(number))

    def write(self) -> None:
        """Write the files that the auditor reads."""
        added = [("adding", OLD, -9), ("added", OLD, -8), ("adding", NEW, 25), ("added", NEW, 26)]
        adapters = [
            {"at": at(s), "event": event, "name": "moving", "source": revision[7:], "revision": revision}
            for event, revision, s in added
        ]
        expected = {
            f"request-{number}": {source: answer(number, source) for source in ("old", "new")}
            for number in range(NUM_JOBS)
        }
        self._lines("producer-1", self.producer)
        self._lines("receiver-healthy", self.receiver)
        self._lines("faults", self.faults)
        self._lines("adapters", adapters)
        (self.folder / "expected.json").write_text(json.dumps(expected))
        (self.folder / "secrets.json").write_text(json.dumps({TENANT: SECRET}))

    def _lines(self, name: str, records: list[dict[str, Any]]) -> None:
        (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def job_id(number: int) -> UUID:
    """Name a job of the run."""
    return UUID(int=number + 1)


def at(seconds: float) -> float:
    """A time of the run."""
    return (BEGAN + timedelta(seconds=seconds)).timestamp()


def revision_of(number: int) -> str:
    """The revision that was current when a job was submitted, ten seconds after the one before it."""
    return OLD if number < 3 else NEW


def answer(number: int, source: str) -> dict[str, Any]:
    """The right answer to a request by one adapter."""
    output = f"{source}-{number}"
    return {"output": output, "finish_reason": "stop", "prompt_tokens": 5, "completion_tokens": len(output)}


def job_values(number: int) -> dict[str, Any]:
    """What the ledger has of a job."""
    revision = revision_of(number)
    right = answer(number, revision[7:])
    begin = BEGAN + timedelta(seconds=number * 10)
    return {
        "id": job_id(number),
        "number": number,
        "tenant": TENANT,
        "revision": revision,
        "at": begin,
        "end": begin + timedelta(seconds=1),
        "output": right["output"],
        "tokens": right["completion_tokens"],
        "metadata": json.dumps({"run": RUN, "n": number, "variant": 0}),
    }


def producer_records(number: int) -> list[dict[str, Any]]:
    """What its producer writes down of a job that goes well."""
    name = {"n": number, "variant": 0, "job_id": str(job_id(number))}
    values = job_values(number)
    told = {"state": "succeeded", "attempt": 1, "output": values["output"], "prompt_tokens": 5}
    intent = {"request": f"request-{number}", "adapter": "moving", "tenant": TENANT, "may_end": ["succeeded"]}
    streamed = {"pieces": [[1, values["output"], False]], "entries": [[1, 0, values["output"], False]]}
    return [
        {"at": at(number * 10), "event": "intent", **name, **intent},
        {"at": at(number * 10), "event": "receipt", **name, "kind": "stream"},
        {"at": at(number * 10 + 2), "event": "told", **name, **told, "completion_tokens": values["tokens"]},
        {"at": at(number * 10 + 2), "event": "streamed", **name, **streamed},
    ]


def delivery(number: int, *, secret: str = SECRET, **said: Any) -> dict[str, Any]:
    """A webhook as its receiver got it; `said` spoils its contents before they are signed."""
    values = job_values(number)
    data = {"job_id": str(job_id(number)), "state": "succeeded", "attempt": 1, "output": values["output"]}
    data |= {"prompt_tokens": 5, "completion_tokens": values["tokens"], "tenant": TENANT, "adapter": "moving"}
    data |= {"revision": values["revision"], **said}
    body = json.dumps({"type": "job.succeeded", "data": data}).encode()
    headers = {"webhook-id": f"id-{number}", "webhook-timestamp": "1700000000"}
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.new(key, f"id-{number}.1700000000.".encode() + body, hashlib.sha256).digest()
    headers["webhook-signature"] = "v1," + base64.b64encode(mac).decode()
    return {
        "at": at(number * 10 + 2),
        "event": "delivery",
        "path": f"/{number}",
        "headers": headers,
        "body": base64.b64encode(body).decode(),
        "status": 200,
        "counts": True,
    }
