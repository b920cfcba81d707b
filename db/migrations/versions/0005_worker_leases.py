"""Leases in a table of their own, which a renewal alone touches.

Stop schedulers and workers first: those of earlier releases renew in `workers`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TIMESTAMP = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    """Move every worker's lease; who was lost stays lost."""
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
