"""What a worker computes on, and workers that register although their device has failed.

Stops nobody: processes of the release before name none of the columns, and give jobs to ready workers alone.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# On the way up 0005 has locked these and more, and by itself this revision touches one table; on the way down
# this one comes first, and those after it lock `worker_leases`, which live transactions lock before `workers`.
_LOCK_ALL = (
    "LOCK TABLE worker_leases, workers, adapter_revisions, intake_rejects, jobs, job_inputs "
    "IN ACCESS EXCLUSIVE MODE"
)

STATE = "ck_workers_state"


def upgrade() -> None:
    """Add the columns, empty for workers of before, and the state."""
    for column in ("device", "device_name", "driver_version", "torch_version", "reason"):
        op.add_column("workers", sa.Column(column, sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("device_memory_bytes", sa.BigInteger(), nullable=True))
    op.drop_constraint(op.f(STATE), "workers")
    op.create_check_constraint(
        op.f(STATE), "workers", "state IN ('ready', 'draining', 'unhealthy', 'gone', 'lost')"
    )


def downgrade() -> None:
    """Forget devices; an unhealthy worker holds no job and counts as gone."""
    op.execute(_LOCK_ALL)
    op.execute("UPDATE workers SET state = 'gone' WHERE state = 'unhealthy'")
    op.drop_constraint(op.f(STATE), "workers")
    op.create_check_constraint(op.f(STATE), "workers", "state IN ('ready', 'draining', 'gone', 'lost')")
    for column in (
        "device_memory_bytes", "reason", "torch_version", "driver_version", "device_name", "device",
    ):  # fmt: skip
        op.drop_column("workers", column)
