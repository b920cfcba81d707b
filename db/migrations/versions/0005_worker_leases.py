"""Leases in a table of their own, which a renewal alone touches.

Stop schedulers and workers first: those of earlier releases renew in `workers` (docs/upgrading.md).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# This revision, 0006 and 0007 run in one transaction and would lock `jobs` twice, weakly first: whoever has read it
# and is about to write would then wait for them, and they for him. So all tables that the three change are locked
# at once, with `job_keys` for 0014, in the order in which live transactions lock them.
_LOCK_ALL = (
    "LOCK TABLE job_keys, workers, adapter_revisions, intake_rejects, jobs, job_inputs IN ACCESS EXCLUSIVE MODE"
)

TIMESTAMP = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    """Move every worker's lease; who was lost stays lost."""
    op.execute(_LOCK_ALL)
    op.create_table(
        "worker_leases",
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("expires_at", TIMESTAMP, nullable=False),
        sa.Column("lost", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("incarnation", name="pk_worker_leases"),
        postgresql_with={"fillfactor": "50"},
    )
    op.execute(
        "INSERT INTO worker_leases (incarnation, expires_at, lost) "
        "SELECT incarnation, lease_expires_at, state = 'lost' FROM workers"
    )
    op.drop_column("workers", "lease_expires_at")


def downgrade() -> None:
    """Move the leases back."""
    op.add_column("workers", sa.Column("lease_expires_at", TIMESTAMP, nullable=True))
    op.execute(
        "UPDATE workers w SET lease_expires_at = l.expires_at FROM worker_leases l "
        "WHERE l.incarnation = w.incarnation"
    )
    op.alter_column("workers", "lease_expires_at", nullable=False)
    op.drop_table("worker_leases")
