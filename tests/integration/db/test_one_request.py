"""Migration 0007: every request of the recorded ledger means the same afterwards, and the way back exists."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy.exc import IntegrityError

from db.errors import DowngradeRefused
from db.migrate import downgrade, upgrade
from db.repositories.jobs import JobRepository
from lorayard.contract.request import NEUTRAL, GenerationRequest
from lorayard.local import plain_url
from tests.integration.db.ledger import Ledger
from tests.integration.db.test_recorded_ledger import DUMP, read_all

GATHERED = (
    "prompt", "messages", "adapter_scale", "temperature", "top_p", "top_k", "seed", "stop", "stream",
    "structured_outputs",
)  # fmt: skip


@pytest.fixture
def recorded(empty_database_url: str) -> str:
    """A database as version 0.1 left it."""
    with psycopg.connect(plain_url(empty_database_url), autocommit=True) as connection:
        connection.execute(DUMP.read_bytes())
    return empty_database_url


def inputs_of(url: str) -> dict[UUID, dict[str, Any]]:
    """Read the inputs of all jobs with what their own rows say, JSON and numbers as Python has them."""
    with psycopg.connect(plain_url(url)) as connection:
        found = connection.execute(
            "SELECT i.*, j.max_tokens, to_jsonb(j)->'stream' AS copied_stream,"
            " to_jsonb(j)->'request_bytes' AS request_bytes, j.ended_at IS NULL AS waits"
            " FROM jobs j JOIN job_inputs i USING (job_id)"
        )
        names = [column.name for column in found.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in found]
    return {row["job_id"]: row for row in rows}


def before_0007(url: str) -> None:
    """Take the schema back to what it was before."""
    downgrade(url, "0006")


def test_every_request_means_what_its_columns_said(recorded: str) -> None:
    old = inputs_of(recorded)

    upgrade(recorded)

    new = inputs_of(recorded)
    assert set(new) == set(old)
    for job_id, row in old.items():
        columns = {name: row[name] for name in GATHERED if row[name] is not None}
        asked = {**NEUTRAL, **columns, **(row["sampling"] or {})}
        if not row["waits"]:  # what nobody runs any more does not spell out what it left unset
            asked = {name: value for name, value in asked.items() if NEUTRAL.get(name) != value}
        expected = GenerationRequest(**asked, max_tokens=row["max_tokens"])
        assert GenerationRequest.model_validate(new[job_id]["request"]) == expected
        assert new[job_id]["copied_stream"] == row["stream"]
        assert {name: new[job_id][name] for name in ("metadata", "callback_url", "callback_host")} == {
            name: row[name] for name in ("metadata", "callback_url", "callback_host")
        }


def test_only_what_differs_from_a_default_is_kept_and_in_the_order_it_was_given(recorded: str) -> None:
    upgrade(recorded)

    requests = [row["request"] for row in inputs_of(recorded).values()]
    assert min(requests, key=len) == {"prompt": "hello"}
    (schema,) = [
        one["structured_outputs"]["json_schema"]
        for one in requests
        if isinstance(one.get("structured_outputs", {}).get("json_schema"), dict)
    ]
    assert list(schema["properties"]) == ["z", "a"]
    assert schema["properties"]["z"]["maximum"] == 1000.0


def test_a_row_says_how_many_bytes_its_request_has(recorded: str) -> None:
    upgrade(recorded)

    with psycopg.connect(plain_url(recorded)) as connection:
        sizes = connection.execute(
            "SELECT request_bytes, octet_length(request::text) FROM jobs JOIN job_inputs USING (job_id)"
        ).fetchall()
    assert sizes
    assert all(copied == real > 0 for copied, real in sizes)


def test_a_downgrade_gives_every_row_its_columns_again(recorded: str) -> None:
    old = inputs_of(recorded)
    upgrade(recorded)

    before_0007(recorded)

    new = inputs_of(recorded)
    assert {job_id: {name: row[name] for name in old[job_id]} for job_id, row in new.items()} == old
    upgrade(recorded)
    assert {row["job_id"] for row in read_all(recorded)["job_inputs"]} == {str(job_id) for job_id in old}


def test_a_downgrade_refuses_to_forget_what_a_waiting_job_asks_for(ledger: Ledger, database_url: str) -> None:
    (job_id,) = ledger.admitted()
    request = json.dumps({"prompt": "a", "of_later": 1})
    ledger.sql("UPDATE job_inputs SET request = CAST(:r AS json)", r=request)

    with pytest.raises(DowngradeRefused, match="cannot hold, for one of_later: let them end or cancel"):
        before_0007(database_url)

    ledger.run(JobRepository, "cancel", job_id)
    before_0007(database_url)


@pytest.mark.parametrize("request_", [{}, {"max_tokens": 1}, {"prompt": "a", "messages": []}])
def test_the_ledger_takes_one_input_and_one_alone(ledger: Ledger, request_: dict[str, Any]) -> None:
    ledger.admitted()

    with pytest.raises(IntegrityError, match="ck_job_inputs_one_input"):
        ledger.sql("UPDATE job_inputs SET request = CAST(:r AS json)", r=json.dumps(request_))
