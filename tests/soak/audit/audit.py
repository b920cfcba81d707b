"""Puts the judges together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
from redis import Redis

from tests.soak.audit.evidence import TERMINAL, Evidence, Source, gather
from tests.soak.audit.jobs import judge_jobs, missing_ids
from tests.soak.audit.leftovers import find_leftovers
from tests.soak.audit.recovery import measure
from tests.soak.audit.usage import judge_usage
from tests.soak.audit.verdict import Verdict
from tests.soak.audit.webhooks import judge_webhooks


def audit(
    source: Source, connection: psycopg.Connection[Any] | None = None, *, is_over: bool = True
) -> Verdict:
    """Judge one soak, through a connection of the caller's if one is given.

    `is_over`: everything but Redis and Postgres has been stopped, so that nothing may be left.
    """
    if connection is None:
        with psycopg.connect(source.database_url) as own:
            return audit(source, own, is_over=is_over)
    evidence = gather(source, connection)
    findings = [*judge_jobs(evidence), *judge_usage(connection, source.run), *judge_webhooks(evidence)]
    if is_over:
        with Redis.from_url(source.redis_url) as redis:
            findings += find_leftovers(connection, redis, source.mark)
    accepted = {receipt["job_id"] for receipt in evidence.receipts}
    ended = {str(job.job_id) for job in evidence.jobs if job.state in TERMINAL}
    recoveries = measure(evidence)
    kills = [fault for fault in evidence.faults if fault["kind"] == "kill"]
    return Verdict(
        accepted=len(accepted),
        terminal=len(accepted & ended),
        flushed=len(missing_ids(evidence)[0]),
        findings=tuple(findings),
        kills=len(kills),
        missed=evidence.missed,
        hits=Counter(kill["point"] for kill in kills if "point" in kill),
        other_faults=Counter(
            f"{fault['kind']} {fault['target']}" for fault in evidence.faults if "point" not in fault
        ),
        alone_s=tuple(recoveries.alone),
        recovery_s=tuple(recoveries.all),
        slowest_s=recoveries.slowest,
        replaced_at=tuple(_replaced_at(evidence)),
    )


def _replaced_at(evidence: Evidence) -> Iterator[float]:
    """List when a name that had a revision got another one, while jobs were submitted."""
    begun_at = min((intent["at"] for intent in evidence.intents.values()), default=0.0)
    current: dict[str, str] = {}
    for one in evidence.adapters:
        if one["event"] == "added":
            before = current.get(one["name"])
            current[one["name"]] = one["revision"]
            if one["at"] >= begun_at and before not in (None, one["revision"]):
                yield one["at"]
