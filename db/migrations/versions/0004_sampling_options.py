"""How a job's tokens are chosen, beyond temperature and its like."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make room for options; none (NULL) is what the jobs there already asked for."""
    op.add_column("job_inputs", sa.Column("sampling", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Forget the options."""
    op.drop_column("job_inputs", "sampling")
