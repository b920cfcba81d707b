"""Finds what is old: ended jobs and intake rejects by their time, and adapter revisions that nobody uses."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STATE = "ck_adapter_revisions_state"


def upgrade() -> None:
    """Build two indexes and let revisions be collected.

    Not CONCURRENTLY: that cannot run in the one transaction in which all migrations succeed or fail together,
    and waits for every open transaction, a second migrator's included. A plain build holds writers to `jobs`
    back for as long as it takes to read the table (5 s for 1,000,000 rows on two busy cores), which admission,
    dispatch and commits ride out: this migration by itself stops no process. Whoever cannot spare that builds
    it beforehand by hand (docs/retention.md). `jobs` comes last, as it does in admission: no deadlock.
    """
    op.add_column("adapter_revisions", sa.Column("unused_since", sa.TIMESTAMP(timezone=True), nullable=True))
    op.drop_constraint(STATE, "adapter_revisions")
    op.create_check_constraint(
        op.f(STATE), "adapter_revisions", "state IN ('active', 'quarantined', 'collecting', 'collected')"
    )
    op.create_index("ix_intake_rejects_age", "intake_rejects", ["pool", "created_at"])
    op.create_index(
        "ix_jobs_ended",
        "jobs",
        ["pool", "ended_at"],
        postgresql_where=sa.text("ended_at IS NOT NULL"),
        if_not_exists=True,
    )


def downgrade() -> None:
    """Forget ages; revisions on their way out become what they were, those without files quarantined."""
    op.drop_constraint(STATE, "adapter_revisions")
    op.execute(
        """
        UPDATE adapter_revisions
        SET state = CASE WHEN state = 'collecting' AND reason IS NULL THEN 'active' ELSE 'quarantined' END,
            reason = coalesce(reason, CASE WHEN state = 'collected' THEN 'its files were collected' END)
        WHERE state IN ('collecting', 'collected')
        """
    )
    op.create_check_constraint(op.f(STATE), "adapter_revisions", "state IN ('active', 'quarantined')")
    op.drop_column("adapter_revisions", "unused_since")
    op.drop_index("ix_intake_rejects_age", "intake_rejects")
    op.drop_index("ix_jobs_ended", "jobs")
