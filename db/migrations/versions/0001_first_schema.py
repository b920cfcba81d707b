"""The first schema: jobs, workers and leaders, adapters, usage, tenants and their webhooks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIMESTAMP = postgresql.TIMESTAMP(timezone=True)
NOW = sa.text("now()")
ZERO = sa.text("0")


def upgrade() -> None:
    """Make every table of the ledger."""
    _create_jobs()
    _create_workers()
    _create_adapters()
    _create_usage()
    _create_outbox()


def downgrade() -> None:
    """Drop every table of the ledger, with all that is in them."""
    for name in reversed(TABLES):
        op.drop_table(name)
    op.execute(sa.schema.DropSequence(sa.Sequence("jobs_admit_seq")))


TABLES = (
    "jobs",
    "job_inputs",
    "job_outputs",
    "job_keys",
    "attempts",
    "cancellations",
    "intake_rejects",
    "workers",
    "scheduler_terms",
    "adapter_revisions",
    "adapters",
    "catalogues",
    "usage_deltas",
    "adapter_usage",
    "tenants",
    "webhook_deliveries",
)


def _create_jobs() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("jobs_admit_seq")))
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column(
            "admit_seq", sa.BigInteger(), server_default=sa.text("nextval('jobs_admit_seq')"), nullable=False
        ),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=True),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=ZERO, nullable=False),
        sa.Column("strikes", sa.SmallInteger(), server_default=ZERO, nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=True),
        sa.Column("reply_to", sa.Text(), nullable=True),
        sa.Column("has_callback", sa.Boolean(), nullable=False),
        sa.Column("est_prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("max_tokens", sa.Integer(), nullable=False),
        sa.Column("submitted_at", TIMESTAMP, nullable=False),
        sa.Column("deadline_at", TIMESTAMP, nullable=True),
        sa.Column("leased_at", TIMESTAMP, nullable=True),
        sa.Column("ended_at", TIMESTAMP, nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), server_default=ZERO, nullable=False),
        sa.Column("completion_tokens", sa.Integer(), server_default=ZERO, nullable=False),
        sa.Column("queue_ms", sa.Double(), nullable=True),
        sa.Column("run_ms", sa.Double(), nullable=True),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state IN ('queued', 'leased')) = (ended_at IS NULL)",
            name=op.f("ck_jobs_ended_at_when_terminal"),
        ),
        sa.CheckConstraint(
            "state <> 'leased' OR incarnation IS NOT NULL", name=op.f("ck_jobs_leased_by_someone")
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'leased', 'succeeded', 'failed', 'cancelled', 'expired', 'rejected', 'dead')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 2", name=op.f("ck_jobs_priority")),
        sa.PrimaryKeyConstraint("job_id", name="pk_jobs"),
        postgresql_with={
            "fillfactor": "80",
            "autovacuum_vacuum_scale_factor": "0.02",
            "autovacuum_vacuum_threshold": "1000",
            "autovacuum_analyze_scale_factor": "0.05",
            "autovacuum_vacuum_cost_delay": "0",
        },
    )
    op.create_index("ix_jobs_admit_seq", "jobs", ["admit_seq"], unique=True)
    op.create_index(
        "ix_jobs_deadline",
        "jobs",
        ["pool", "deadline_at"],
        postgresql_where=sa.text("state = 'queued' AND deadline_at IS NOT NULL"),
    )
    op.create_index("ix_jobs_leased", "jobs", ["incarnation"], postgresql_where=sa.text("state = 'leased'"))
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        ["pool", "priority", "admit_seq"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_table(
        "job_inputs",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=True),
        sa.Column("messages", sa.JSON(), nullable=True),
        sa.Column("temperature", sa.Double(), nullable=False),
        sa.Column("top_p", sa.Double(), nullable=False),
        sa.Column("top_k", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("stop", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("callback_url", sa.Text(), nullable=True),
        sa.Column("callback_host", sa.Text(), nullable=True),
        sa.Column("submission_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("(prompt IS NULL) <> (messages IS NULL)", name=op.f("ck_job_inputs_one_input")),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_inputs"),
    )
    op.create_table(
        "job_outputs",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("output", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_outputs"),
    )
    op.create_table(
        "job_keys",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("payload_sha256", sa.Text(), nullable=False),
        sa.Column("created_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_keys"),
    )
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("ended", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), server_default=ZERO, nullable=False),
        sa.Column("completion_tokens", sa.Integer(), server_default=ZERO, nullable=False),
        sa.Column("queue_ms", sa.Double(), nullable=True),
        sa.Column("run_ms", sa.Double(), nullable=True),
        sa.Column("device_ms", sa.Double(), server_default=ZERO, nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("ended_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.CheckConstraint(
            "ended IN ('succeeded', 'failed', 'cancelled', 'expired', 'rejected', 'dead', 'released', 'lost')",
            name=op.f("ck_attempts_ended"),
        ),
        sa.PrimaryKeyConstraint("job_id", "attempt", name="pk_attempts"),
    )
    op.create_table(
        "cancellations",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("requested_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_cancellations"),
    )
    op.create_table(
        "intake_rejects",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("entry_id", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("created_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("pool", "stream", "entry_id", name="pk_intake_rejects"),
    )


def _create_workers() -> None:
    op.create_table(
        "workers",
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("lease_expires_at", TIMESTAMP, nullable=False),
        sa.Column("registered_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.Column("commit_seq", sa.BigInteger(), server_default=sa.text("-1"), nullable=False),
        sa.Column(
            "running_jobs", postgresql.ARRAY(sa.Uuid()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column(
            "running_attempts", postgresql.ARRAY(sa.Integer()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("max_num_seqs", sa.Integer(), nullable=False),
        sa.Column("num_kv_blocks", sa.Integer(), nullable=False),
        sa.Column("block_size", sa.Integer(), nullable=False),
        sa.Column("max_model_len", sa.Integer(), nullable=False),
        sa.Column("max_loras", sa.Integer(), nullable=False),
        sa.Column("max_lora_rank", sa.Integer(), nullable=False),
        sa.CheckConstraint("state IN ('ready', 'draining', 'gone', 'lost')", name=op.f("ck_workers_state")),
        sa.PrimaryKeyConstraint("incarnation", name="pk_workers"),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "scheduler_terms",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expires_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("pool", name="pk_scheduler_terms"),
        postgresql_with={"fillfactor": "50"},
    )


def _create_adapters() -> None:
    op.create_table(
        "adapter_revisions",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("targets", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'active'"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.CheckConstraint("state IN ('active', 'quarantined')", name=op.f("ck_adapter_revisions_state")),
        sa.PrimaryKeyConstraint("pool", "digest", name="pk_adapter_revisions"),
    )
    op.create_table(
        "adapters",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("current_revision", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'active'"), nullable=False),
        sa.Column("updated_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.CheckConstraint("state IN ('active', 'removed')", name=op.f("ck_adapters_state")),
        sa.ForeignKeyConstraint(
            ["pool", "current_revision"],
            ["adapter_revisions.pool", "adapter_revisions.digest"],
            name="fk_adapters_pool_current_revision",
        ),
        sa.PrimaryKeyConstraint("pool", "name", name="pk_adapters"),
    )
    op.create_table(
        "catalogues",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pool", name="pk_catalogues"),
    )


def _create_usage() -> None:
    op.create_table(
        "usage_deltas",
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("created_at", TIMESTAMP, server_default=NOW, nullable=False),
        *_counters(),
        sa.PrimaryKeyConstraint("incarnation", "seq", "part", name="pk_usage_deltas"),
    )
    op.create_table(
        "adapter_usage",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("hour", TIMESTAMP, nullable=False),
        *_counters(),
        sa.PrimaryKeyConstraint("pool", "adapter", "tenant", "hour", name="pk_adapter_usage"),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("ix_adapter_usage_hour", "adapter_usage", ["hour"])


def _create_outbox() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("weight", sa.Double(), server_default=sa.text("1"), nullable=False),
        sa.Column("secret_current", sa.LargeBinary(), nullable=True),
        sa.Column("secret_previous", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.CheckConstraint(
            "secret_previous IS NULL OR secret_current IS NOT NULL",
            name=op.f("ck_tenants_previous_needs_current"),
        ),
        sa.CheckConstraint("weight > 0", name=op.f("ck_tenants_weight")),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("claim", sa.Integer(), server_default=ZERO, nullable=False),
        sa.Column("tries", sa.Integer(), server_default=ZERO, nullable=False),
        sa.Column("next_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.Column("ended_at", TIMESTAMP, nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'delivered', 'dead')", name=op.f("ck_webhook_deliveries_state")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
        postgresql_with={"fillfactor": "80", "autovacuum_vacuum_scale_factor": "0.02"},
    )
    op.create_index(
        "ix_webhook_deliveries_dead",
        "webhook_deliveries",
        ["created_at"],
        postgresql_where=sa.text("state = 'dead'"),
    )
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["next_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index("ix_webhook_deliveries_job_id", "webhook_deliveries", ["job_id"], unique=True)


def _counters() -> list[sa.Column]:
    whole = ("jobs", "prompt_tokens", "completion_tokens", "loads", "hits", "evictions", "failures")
    times = ("device_ms", "queue_ms", "load_ms", "wasted_device_ms")
    return [sa.Column(name, sa.BigInteger(), server_default=ZERO, nullable=False) for name in whole] + [
        sa.Column(name, sa.Double(), server_default=ZERO, nullable=False) for name in times
    ]
