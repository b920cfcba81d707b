"""Which store a worker reads adapters from, and which revisions could not be read from which stores.

Stops nobody: processes of the release before name none of it. Their workers tell no store; the machine that they
run on stands for it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# By itself this revision changes one old table; on the way down it comes first, and those after it change the
# others, which live transactions lock after `job_keys`.
_LOCK_ALL = (
    "LOCK TABLE job_keys, worker_leases, workers, adapter_revisions, intake_rejects, jobs, job_inputs, "
    "job_outputs, webhook_deliveries IN ACCESS EXCLUSIVE MODE"
)

TIMESTAMP = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    """Nothing has failed yet, as far as is known."""
    op.add_column("workers", sa.Column("store", sa.Text(), nullable=True))
    op.create_table(
        "store_failures",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("store", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("first_at", TIMESTAMP, nullable=False),
        sa.Column("failed_at", TIMESTAMP, nullable=False),
        sa.Column("cools_until", TIMESTAMP, nullable=False),
        sa.Column("pause_s", sa.Double(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("pool", "digest", "store", name="pk_store_failures"),
    )


def downgrade() -> None:
    """Forget what failed; it is tried again."""
    op.execute(_LOCK_ALL)
    op.drop_table("store_failures")
    op.drop_column("workers", "store")
