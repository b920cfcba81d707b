"""Which job alone was running while a host's engines died, again and again.

Stops nobody: schedulers of the release before name none of the columns, and what they add to `in_a_row` alone
proves nothing against a job.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

# On the way down it comes first, and those after it change tables that live transactions lock before others.
_LOCK_ALL = (
    "LOCK TABLE job_keys, worker_leases, workers, worker_hosts, adapter_revisions, intake_rejects, jobs, "
    "job_inputs, job_outputs, webhook_deliveries IN ACCESS EXCLUSIVE MODE"
)


def upgrade() -> None:
    """No job is under suspicion by itself yet."""
    op.add_column("worker_hosts", sa.Column("lone_job", sa.Uuid(), nullable=True))
    op.add_column(
        "worker_hosts", sa.Column("lone_deaths", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )


def downgrade() -> None:
    """Forget it; strikes stay."""
    op.execute(_LOCK_ALL)
    op.drop_column("worker_hosts", "lone_deaths")
    op.drop_column("worker_hosts", "lone_job")
