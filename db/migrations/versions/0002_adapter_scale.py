"""How strongly a job's adapter acts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Give every job a scale; those there already asked for their adapter as trained."""
    op.add_column(
        "job_inputs", sa.Column("adapter_scale", sa.Double(), server_default=sa.text("1"), nullable=False)
    )


def downgrade() -> None:
    """Forget the scales."""
    op.drop_column("job_inputs", "adapter_scale")
