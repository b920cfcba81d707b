"""What people have paused, and how much a tenant may have queued and submit.

Stops nobody: processes of the release before know no such tables, and so neither pause nor refuse.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing is paused, and nobody has a quota."""
    op.create_table(
        "pauses",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "paused_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint("kind IN ('pool', 'tenant', 'adapter')", name=op.f("ck_pauses_kind")),
        sa.CheckConstraint("(kind = 'tenant') = (pool = '*')", name=op.f("ck_pauses_tenant_everywhere")),
        sa.PrimaryKeyConstraint("kind", "pool", "name", name="pk_pauses"),
    )
    op.create_table(
        "tenant_quotas",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("max_queued_jobs", sa.Integer(), nullable=True),
        sa.Column("max_tokens_per_s", sa.Double(), nullable=True),
        sa.CheckConstraint("max_queued_jobs >= 0", name=op.f("ck_tenant_quotas_max_queued_jobs")),
        sa.CheckConstraint("max_tokens_per_s > 0", name=op.f("ck_tenant_quotas_max_tokens_per_s")),
        sa.CheckConstraint(
            "max_queued_jobs IS NOT NULL OR max_tokens_per_s IS NOT NULL",
            name=op.f("ck_tenant_quotas_limits_something"),
        ),
        sa.PrimaryKeyConstraint("tenant", name="pk_tenant_quotas"),
    )


def downgrade() -> None:
    """Forget both: what was paused goes on, and nobody is refused for a quota."""
    op.drop_table("tenant_quotas")
    op.drop_table("pauses")
