"""What a job asks for as one JSON value, and beside its state what it is scheduled and announced by.

Schedulers, workers and relays of the release before cannot work on this schema: stop them first (docs/upgrading.md).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.errors import DowngradeRefused

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# On the way up 0005 has locked these and more; on the way down 0008 has, unless this one comes first.
_LOCK_ALL = (
    "LOCK TABLE worker_leases, workers, adapter_revisions, intake_rejects, jobs, job_inputs "
    "IN ACCESS EXCLUSIVE MODE"
)

# The texts of JSON values are joined, not jsonb's: numbers and the order of keys stay as they were given.
# What has its default is left out, as writers do; concat_ws passes NULLs over.
_GATHER = """
    UPDATE job_inputs i SET request = CAST('{' || concat_ws(',',
        '"prompt":' || to_json(i.prompt),
        '"messages":' || CAST(i.messages AS text),
        '"adapter_scale":' || to_json(nullif(i.adapter_scale, 1)),
        '"max_tokens":' || (SELECT nullif(j.max_tokens, 128) FROM jobs j WHERE j.job_id = i.job_id),
        '"temperature":' || to_json(nullif(i.temperature, 0)),
        '"top_p":' || to_json(nullif(i.top_p, 1)),
        '"top_k":' || nullif(i.top_k, 0),
        '"seed":' || i.seed,
        '"stop":' || nullif(CAST(i.stop AS text), '[]'),
        '"structured_outputs":' || CAST(i.structured_outputs AS text),
        nullif(regexp_replace(CAST(i.sampling AS text), '^\\s*\\{\\s*|\\s*\\}\\s*$', '', 'g'), ''),
        '"stream":' || to_json(nullif(i.stream, false))
    ) || '}' AS json)
"""

_COPY = """
    UPDATE jobs j SET stream = i.stream, request_bytes = octet_length(CAST(i.request AS text))
    FROM job_inputs i WHERE i.job_id = j.job_id
"""

_OLD_COLUMNS = (
    "prompt", "messages", "adapter_scale", "temperature", "top_p", "top_k", "seed", "stop", "stream",
    "structured_outputs", "sampling",
)

_SAMPLING = (
    "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens", "stop_token_ids",
    "include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "logit_bias", "bad_words",
)

_SCATTER = f"""
    UPDATE job_inputs SET
        prompt = request->>'prompt',
        messages = request->'messages',
        adapter_scale = coalesce(CAST(request->>'adapter_scale' AS float8), 1),
        temperature = coalesce(CAST(request->>'temperature' AS float8), 0),
        top_p = coalesce(CAST(request->>'top_p' AS float8), 1),
        top_k = coalesce(CAST(request->>'top_k' AS bigint), 0),
        seed = CAST(request->>'seed' AS bigint),
        stop = coalesce(request->'stop', '[]'),
        stream = coalesce(CAST(request->>'stream' AS boolean), false),
        structured_outputs = request->'structured_outputs',
        sampling = (
            SELECT CAST('{{' || string_agg(to_json(key) || ':' || value, ', ') || '}}' AS json)
            FROM json_each(request) WHERE key IN {_SAMPLING}
        )
"""

_OF_LATER_RELEASES = sa.text("""
    SELECT count(*), min(unknown.key) FROM jobs j JOIN job_inputs i ON i.job_id = j.job_id,
        LATERAL (SELECT key FROM json_object_keys(i.request) AS k(key) WHERE key <> ALL(:known)) AS unknown
    WHERE j.ended_at IS NULL
""")


def upgrade() -> None:
    """Gather each job's request, of those that have ended too, then drop the columns it had."""
    op.add_column(
        "jobs", sa.Column("request_bytes", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column(
        "jobs", sa.Column("stream", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("job_inputs", sa.Column("request", sa.JSON(), nullable=True))
    op.execute(_GATHER)
    op.execute(_COPY)
    op.alter_column("job_inputs", "request", nullable=False)
    op.drop_constraint(op.f("ck_job_inputs_one_input"), "job_inputs")
    for column in _OLD_COLUMNS:
        op.drop_column("job_inputs", column)
    op.create_check_constraint(
        op.f("ck_job_inputs_one_input"),
        "job_inputs",
        "(request->'prompt' IS NULL) <> (request->'messages' IS NULL)",
    )


def downgrade() -> None:
    """Spread the requests over columns again; refused while a job waits that asks for more than they hold."""
    op.execute(_LOCK_ALL)
    known = [*_OLD_COLUMNS, *_SAMPLING, "max_tokens"]
    jobs, field = op.get_bind().execute(_OF_LATER_RELEASES, {"known": known}).one()
    if jobs:
        raise DowngradeRefused(
            f"{jobs} unfinished jobs ask for what the schema before cannot hold, for one {field}: "
            "let them end or cancel them, then downgrade"
        )
    op.drop_constraint(op.f("ck_job_inputs_one_input"), "job_inputs")
    for column, kind in zip(_OLD_COLUMNS, _old_types(), strict=True):
        op.add_column("job_inputs", sa.Column(column, kind, nullable=True))
    op.execute(_SCATTER)
    for column in ("adapter_scale", "temperature", "top_p", "top_k", "stop", "stream"):
        op.alter_column("job_inputs", column, nullable=False)
    op.alter_column("job_inputs", "adapter_scale", server_default=sa.text("1"))
    op.alter_column("job_inputs", "stream", server_default=sa.text("false"))
    op.drop_column("job_inputs", "request")
    op.create_check_constraint(
        op.f("ck_job_inputs_one_input"), "job_inputs", "(prompt IS NULL) <> (messages IS NULL)"
    )
    op.drop_column("jobs", "stream")
    op.drop_column("jobs", "request_bytes")


def _old_types() -> tuple[sa.types.TypeEngine, ...]:
    return (
        sa.Text(), sa.JSON(), sa.Double(), sa.Double(), sa.Double(), sa.BigInteger(), sa.BigInteger(),
        sa.JSON(), sa.Boolean(), sa.JSON(), sa.JSON(),
    )
