"""The statements that run all day find their rows by the partial indexes made for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from db.repositories import admission, backlog, jobs, leases, retention, webhooks
from tests.integration.db.ledger import POOL, Ledger


@pytest.fixture(scope="module")
def full_ledger(shared_database_url: str) -> Iterator[Ledger]:
    """A ledger as it is after some days: almost all of it has ended."""
    ledger = Ledger(shared_database_url)
    ledger.sql(
        """
        INSERT INTO jobs (job_id, pool, tenant, priority, state, incarnation, has_callback, est_prompt_tokens,
            max_tokens, submitted_at, deadline_at, ended_at)
        SELECT gen_random_uuid(), :pool, 'acme', n % 3,
            CASE n % 100 WHEN 0 THEN 'queued' WHEN 1 THEN 'leased' ELSE 'succeeded' END,
            'w' || n % 7, false, 3, 3, now(), now() + n * interval '1 second',
            CASE WHEN n % 100 > 1 THEN now() END
        FROM generate_series(1, 20000) AS n
    """,
        pool=POOL,
    )
    ledger.sql("""
        INSERT INTO webhook_deliveries (job_id, tenant, url, host, event_type, state)
        SELECT gen_random_uuid(), 'acme', 'https://a/', 'a', 'job.succeeded',
            CASE n % 100 WHEN 0 THEN 'pending' ELSE 'delivered' END
        FROM generate_series(1, 20000) AS n
    """)
    ledger.sql("""
        INSERT INTO job_keys (job_id, payload_sha256, created_at)
        SELECT job_id, 'x', submitted_at - interval '1 day' FROM jobs
    """)
    ledger.sql("""
        INSERT INTO job_inputs (job_id, request, metadata, submission_id)
        SELECT job_id, json_build_object('prompt', 'a'), '{}', job_id FROM jobs
    """)
    ledger.sql("ANALYZE jobs, job_keys, job_inputs, webhook_deliveries")
    yield ledger
    ledger.database.dispose()


def index_names(plan: Any) -> Iterator[str]:
    if isinstance(plan, dict):
        if "Index Name" in plan:
            yield plan["Index Name"]
        for value in plan.values():
            yield from index_names(value)
    elif isinstance(plan, list):
        for value in plan:
            yield from index_names(value)


STATEMENTS = {
    "read the backlog": (backlog._QUEUED_AFTER, {"pool": POOL, "cursor": 0, "limit": 100}, "ix_jobs_queued"),
    "read the backlog of some": (
        backlog._QUEUED_AMONG,
        {"pool": POOL, "cursor": 0, "limit": 10, "look_at": 100, "tenants": ["acme"], "are_wanted": True},
        "ix_jobs_queued",
    ),
    "expire": (jobs._EXPIRE, {"pool": POOL, "limit": 100}, "ix_jobs_deadline"),
    "take from a lost worker": (leases._HOLDS, {"incarnation": "w1", "host": "h"}, "ix_jobs_leased"),
    "lease": (
        leases._LEASE,
        {"pool": POOL, "incarnation": "w1", "ids": [uuid4() for _ in range(16)]},
        "pk_jobs",
    ),
    "delete what is old": (
        retention._DELETE_JOBS,
        {"pool": POOL, "older_than_s": 60.0, "limit": 100, "after": None},
        "ix_jobs_ended",
    ),
    "delete old keys": (
        retention._DELETE_KEYS,
        {"pool": POOL, "older_than_s": 60.0, "limit": 100, "after": None},
        "ix_job_keys_age",
    ),
    "know jobs without a key": (admission._TAKEN, {"ids": [uuid4() for _ in range(512)]}, "pk_jobs"),
    "know what was there before": (admission._KNOWN, {"ids": [uuid4() for _ in range(16)]}, "pk_job_keys"),
    "claim webhooks": (
        webhooks._CLAIM,
        {
            "relay": uuid4(),
            "limit": 10,
            "tenants": ["acme"],
            "exclude_hosts": [],
            "per_host": 10,
            "per_tenant_and_host": 10,
            "window": 100,
        },
        "ix_webhook_deliveries_due",
    ),
    "find tenants with webhooks": (
        webhooks._TENANTS,
        {"after": "", "max_tenants": 10},
        "ix_webhook_deliveries_due",
    ),
    "free what dead relays hold": (webhooks._FREE, {}, "ix_webhook_deliveries_relay"),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_hot_statement_uses_its_index_and_scans_no_whole_table(name: str, full_ledger: Ledger) -> None:
    statement, values, index = STATEMENTS[name]
    assert isinstance(values, dict)

    with full_ledger.database.transaction() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        found = connection.execute(text(f"EXPLAIN (FORMAT JSON) {statement.text}"), values).scalar_one()
    plan = found if isinstance(found, list) else json.loads(found)

    assert index in set(index_names(plan))
    assert "Seq Scan" not in json.dumps(plan)
