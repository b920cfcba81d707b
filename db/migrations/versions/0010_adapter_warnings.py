"""What is uncertain about an adapter that is served all the same, such as which base it was trained on.

Stops nobody: processes of the release before name no such column.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# On the way up 0009 has locked what it needs; on the way down this one comes first, and those after it lock
# `worker_leases` and `workers`, which live transactions lock before `adapter_revisions`.
_LOCK_ALL = (
    "LOCK TABLE worker_leases, workers, adapter_revisions, intake_rejects, jobs, job_inputs "
    "IN ACCESS EXCLUSIVE MODE"
)


def upgrade() -> None:
    """Add the column, empty for adapters of before: those were added under stricter rules."""
    warnings = sa.Column(
        "warnings", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False
    )
    op.add_column("adapter_revisions", warnings)


def downgrade() -> None:
    """Forget the warnings."""
    op.execute(_LOCK_ALL)
    op.drop_column("adapter_revisions", "warnings")
