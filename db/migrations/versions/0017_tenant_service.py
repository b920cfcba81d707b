"""What each tenant was served, and where its counter was lifted to: the fair shares of tenants outlive a leader.

Stops nobody: a leader of the release before folds usage without counting it here, and knows no shares.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

ZERO = sa.text("0")


def upgrade() -> None:
    """All tenants begin level; who already has a weight keeps it."""
    op.create_table(
        "tenant_service",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default=ZERO, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default=ZERO, nullable=False),
        sa.Column("lift", sa.Double(), server_default=ZERO, nullable=False),
        sa.Column("weight", sa.Double(), server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint("weight > 0", name=op.f("ck_tenant_service_weight")),
        sa.PrimaryKeyConstraint("pool", "tenant", name="pk_tenant_service"),
    )


def downgrade() -> None:
    """Forget who was served what; usage stays."""
    op.drop_table("tenant_service")
