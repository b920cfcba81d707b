"""Whether a job streams its tokens, and what form its answer must have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let jobs stream and be structured; those there already asked for neither."""
    op.add_column(
        "job_inputs", sa.Column("stream", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("job_inputs", sa.Column("structured_outputs", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Forget both."""
    op.drop_column("job_inputs", "structured_outputs")
    op.drop_column("job_inputs", "stream")
