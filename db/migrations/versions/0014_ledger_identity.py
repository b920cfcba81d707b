"""A ledger has an id, by which Redis knows whose terms it has; a key knows its pool, and can be too old.

Stops nobody: processes of the release before name none of it. They compare no digest of a later rule, and give
jobs without a key a row in `job_keys`, which leaves with its age.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# By itself this revision changes one table; on the way down it comes first, and those after it change the others,
# which live transactions lock after `job_keys`.
_LOCK_ALL = (
    "LOCK TABLE job_keys, worker_leases, workers, adapter_revisions, intake_rejects, jobs, job_inputs, "
    "job_outputs, webhook_deliveries IN ACCESS EXCLUSIVE MODE"
)


def upgrade() -> None:
    """Name the ledger, and index keys by age; those there are know no pool, and their jobs tell it."""
    op.create_table(
        "ledger_id",
        sa.Column("one", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.CheckConstraint("one", name=op.f("ck_ledger_id_one_row")),
        sa.PrimaryKeyConstraint("one", name="pk_ledger_id"),
    )
    op.execute("INSERT INTO ledger_id DEFAULT VALUES")
    op.add_column("job_keys", sa.Column("pool", sa.Text(), nullable=True))
    op.create_index("ix_job_keys_age", "job_keys", ["created_at"], if_not_exists=True)


def downgrade() -> None:
    """Forget the id, and the pools of keys."""
    op.execute(_LOCK_ALL)
    op.drop_index("ix_job_keys_age", "job_keys")
    op.drop_column("job_keys", "pool")
    op.drop_table("ledger_id")
