"""Whose fault the end of a worker was: suspects among jobs, how workers ended, and what their hosts have seen.

Stops nobody: processes of the release before name none of the columns. Their workers do not say how they ended,
which counts as a loss, and a suspect is one that has run before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# In the order in which live transactions lock them, and before anything else: none may wait for the other.
_LOCK_ALL = (
    "LOCK TABLE worker_leases, workers, adapter_revisions, intake_rejects, jobs, job_inputs "
    "IN ACCESS EXCLUSIVE MODE"
)

TIMESTAMP = postgresql.TIMESTAMP(timezone=True)
EMPTY = sa.text("'{}'")


def upgrade() -> None:
    """Add the columns; a job with strikes and no group is read as a suspect by itself."""
    op.execute(_LOCK_ALL)
    op.add_column(
        "workers",
        sa.Column("step_jobs", postgresql.ARRAY(sa.Uuid()), server_default=EMPTY, nullable=False),
    )
    op.add_column(
        "workers",
        sa.Column("step_attempts", postgresql.ARRAY(sa.Integer()), server_default=EMPTY, nullable=False),
    )
    op.add_column(
        "workers", sa.Column("succeeded_jobs", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column("workers", sa.Column("host", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("ended_by", sa.Text(), nullable=True))
    op.create_table(
        "worker_hosts",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("died_at", postgresql.ARRAY(TIMESTAMP), nullable=False),
        sa.Column("in_a_row", sa.Integer(), nullable=False),
        sa.Column("has_ended", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("pool", "host", name="pk_worker_hosts"),
    )
    op.add_column(
        "jobs", sa.Column("losses", sa.SmallInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column("jobs", sa.Column("suspect_group", sa.Uuid(), nullable=True))


def downgrade() -> None:
    """Forget suspicions; strikes stay."""
    op.execute(_LOCK_ALL)
    op.drop_column("jobs", "suspect_group")
    op.drop_column("jobs", "losses")
    op.drop_table("worker_hosts")
    for column in ("ended_by", "host", "succeeded_jobs", "step_attempts", "step_jobs"):
        op.drop_column("workers", column)
