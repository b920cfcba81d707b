"""Judges usage: each attempt that ended counts once, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.soak.audit.verdict import Finding

# Of cancelled attempts only those that a worker has ended are charged as jobs, which their rows do not tell.
_DUE = """
    SELECT j.tenant, coalesce(j.adapter, '') AS adapter,
        count(*) FILTER (WHERE a.ended IN ('succeeded', 'failed', 'expired', 'rejected')) AS least_jobs,
        count(*) FILTER (WHERE a.ended NOT IN ('released', 'lost', 'dead')) AS jobs,
        coalesce(sum(a.prompt_tokens) FILTER (WHERE a.ended NOT IN ('released', 'lost')), 0) AS prompt_tokens,
        coalesce(sum(a.completion_tokens) FILTER (WHERE a.ended NOT IN ('released', 'lost')), 0)
            AS completion_tokens
    FROM attempts a JOIN jobs j USING (job_id) WHERE j.tenant LIKE %(tenants)s GROUP BY 1, 2
"""

_CHARGED = """
    SELECT tenant, adapter, sum(jobs)::bigint AS jobs, sum(prompt_tokens)::bigint AS prompt_tokens,
        sum(completion_tokens)::bigint AS completion_tokens
    FROM (
        SELECT tenant, adapter, jobs, prompt_tokens, completion_tokens FROM usage_deltas
        UNION ALL SELECT tenant, adapter, jobs, prompt_tokens, completion_tokens FROM adapter_usage
    ) AS used WHERE tenant LIKE %(tenants)s GROUP BY 1, 2
"""

_NOTHING = {"least_jobs": 0, "jobs": 0, "prompt_tokens": 0, "completion_tokens": 0}


def judge_usage(connection: psycopg.Connection[Any], run: str) -> Iterator[Finding]:
    """Compare what tenants are charged with what their attempts have used."""
    due, charged = _sums(connection, _DUE, run), _sums(connection, _CHARGED, run)
    for account in sorted(due.keys() | charged.keys()):
        should, has = due.get(account, _NOTHING), charged.get(account, _NOTHING)
        for field in ("jobs", "prompt_tokens", "completion_tokens"):
            least = should["least_jobs"] if field == "jobs" else should[field]
            where = f"{account[0]} on {account[1] or 'the base'}: {has[field]} {field} charged"
            if has[field] > should[field]:
                yield Finding("doubled", f"usage of {where}, {should[field]} used")
            elif has[field] < least:
                yield Finding("lost", f"usage of {where}, {least} used")


def _sums(connection: psycopg.Connection[Any], statement: str, run: str) -> dict[tuple[str, str], Any]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(statement, {"tenants": f"{run}-%"}).fetchall()
    return {(row["tenant"], row["adapter"]): row for row in rows}
