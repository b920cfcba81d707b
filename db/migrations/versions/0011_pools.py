"""What a pool is: its model, and the tokenizer that all its workers have in common.

Stops nobody: processes of the release before know no such table.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, empty: each pool is entered by the next worker that registers."""
    op.create_table(
        "pools",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("served_model_name", sa.Text(), nullable=True),
        sa.Column("model_path", sa.Text(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("quantization", sa.Text(), nullable=True),
        sa.Column("generation_config", sa.Text(), nullable=False),
        sa.Column("tokenizer", sa.Text(), nullable=False),
        sa.Column("config", postgresql.JSON(), nullable=False),
        sa.Column(
            "registered_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("pool", name="pk_pools"),
    )


def downgrade() -> None:
    """Forget the pools; whoever registers again after an upgrade enters them anew."""
    op.drop_table("pools")
