"""How long a worker took to start, by which deadlines are judged that only a further worker could keep.

Stops nobody: workers of the release before do not say, and of them nothing is reckoned.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

# On the way down it comes first, and those after it change tables that live transactions lock before others.
_LOCK_ALL = (
    "LOCK TABLE job_keys, worker_leases, workers, worker_hosts, adapter_revisions, intake_rejects, jobs, "
    "job_inputs, job_outputs, webhook_deliveries IN ACCESS EXCLUSIVE MODE"
)


def upgrade() -> None:
    """Nobody has said yet."""
    op.add_column("workers", sa.Column("start_s", sa.Double(), nullable=True))


def downgrade() -> None:
    """Forget it."""
    op.execute(_LOCK_ALL)
    op.drop_column("workers", "start_s")
