"""What version 0.1 wrote is read as it was meant."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

from lorayard.contract.messages import (
    BODY_FIELD,
    CatalogueEntry,
    Command,
    ControlMessage,
    JobEnvelope,
    JobReply,
    MicroBatch,
    TokenEntry,
    WireMessage,
    WorkerEvent,
)
from lorayard.contract.pool import PoolInfo
from lorayard.contract.reading import read_request
from lorayard.webhooks import WebhookEvent
from tests.recorded.record_messages import Recording, record_entry

RECORDED = Path(__file__).parents[3] / "recorded" / "messages" / "v0_1"


def from_stream(message: type[WireMessage]) -> Callable[[bytes], BaseModel]:
    return lambda body: message.from_entry({BODY_FIELD: body})


def from_celery(entry: bytes) -> BaseModel:
    args, _, _ = json.loads(base64.b64decode(json.loads(entry)["body"]))
    return MicroBatch.model_validate(args[0])


def flattened(message: BaseModel) -> Any:
    """The message as JSON; the requests of jobs as version 0.1 had them, field by field."""
    value = json.loads(message.model_dump_json())
    if isinstance(message, MicroBatch):
        for job, written_job in zip(message.jobs, value["jobs"], strict=True):
            request = json.loads(read_request(job).model_dump_json())
            written_job |= request | {"sampling": request}
    return value


READERS: dict[str, Callable[[bytes], BaseModel]] = {
    "job_envelope": from_stream(JobEnvelope),
    "job_reply": from_stream(JobReply),
    "control_message": from_stream(ControlMessage),
    "worker_event": from_stream(WorkerEvent),
    "command": from_stream(Command),
    "token_entry": from_stream(TokenEntry),
    "catalogue_entry": CatalogueEntry.model_validate_json,
    "pool_info": PoolInfo.model_validate_json,
    "micro_batch": lambda body: MicroBatch.model_validate(json.loads(body)),
    "celery_message": from_celery,
    "webhook_event": WebhookEvent.model_validate_json,
}
FILES = sorted(path for kind in READERS for path in (RECORDED / kind).glob("*.json"))


def written(path: Path) -> Any:
    """The JSON value of a recorded message."""
    value = json.loads(path.read_bytes())
    return (
        json.loads(base64.b64decode(value["body"]))[0][0] if path.parent.name == "celery_message" else value
    )


def lacks(read: Any, wanted: Any, place: str = "") -> list[str]:
    """Name what was written and is not there after reading."""
    if isinstance(wanted, dict) and isinstance(read, dict):
        return [
            lost for name, value in wanted.items() for lost in lacks(read.get(name), value, f"{place}.{name}")
        ]
    if isinstance(wanted, list) and isinstance(read, list) and len(wanted) == len(read):
        return [
            lost
            for number, pair in enumerate(zip(read, wanted, strict=True))
            for lost in lacks(*pair, f"{place}[{number}]")
        ]
    return [] if read == wanted else [f"{place}: {wanted!r} was read as {read!r}"]


def test_every_kind_of_message_was_recorded() -> None:
    kinds = {path.name for path in RECORDED.iterdir()}

    assert kinds - {"admission_figures", "webhook_headers"} == set(READERS)
    assert len(FILES) >= 80


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recorded_message_is_read_with_all_that_was_written(path: Path) -> None:
    message = READERS[path.parent.name](path.read_bytes())

    assert lacks(flattened(message), written(path)) == []


def test_the_guard_finds_the_recorded_figures_by_the_names_it_asks_for() -> None:
    figures = json.loads((RECORDED / "admission_figures" / "figures.json").read_bytes())
    script = files("lorayard.client").joinpath("submit.lua").read_text()

    assert set(figures) == {"ledger_room", "max_entries", "max_bytes", "retry_after_s", "published_ms"}
    assert all(f"'{name}'" in script and float(value) >= 0 for name, value in figures.items())


def test_every_shape_of_job_went_to_a_worker() -> None:
    """What the client was asked for, one by one, is there again in the micro-batches."""
    jobs = {
        job["job_id"]
        for path in FILES
        if path.parent.name == "micro_batch"
        for job in json.loads(path.read_bytes())["jobs"]
    }
    never_leased = {"deadline_passed", "quarantined", "queued_cancel", "too_long_for_the_model"}
    submitted = {
        path.stem: json.loads(path.read_bytes())["job_id"]
        for path in FILES
        if path.parent.name == "job_envelope"
    }

    assert {name for name, job_id in submitted.items() if job_id not in jobs} <= never_leased


def test_a_message_is_recorded_though_its_writer_left_out_what_was_not_set(tmp_path: Path) -> None:
    job_id = uuid4()
    written: list[tuple[str, WireMessage]] = [
        ("lorayard:{p}:completions", WorkerEvent(incarnation="w", free_seqs=1, free_kv_blocks=2)),
        ("lorayard:reply:c", JobReply(job_id=job_id, state=None)),
        ("lorayard:tok:j", TokenEntry(attempt=1)),
        ("lorayard:{p}:control", ControlMessage(kind="lookup", job_id=job_id)),
        ("lorayard:{p}:cmd:w", Command(kind="drain", term=1)),
    ]
    recording = Recording(tmp_path)

    for key, message in written:
        record_entry(key, message.to_body(), {}, recording)

    assert {file.stem for file in tmp_path.rglob("*.json")} == {"empty", "none", "text", "lookup", "drain"}
