"""Claims on webhooks belong to a relay's incarnation, for as long as that one renews its lease.

Stop webhook relays for it: those of the release before would claim again what one of this release has claimed.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# This revision, 0013 and 0014 run in one transaction, up as well as down: the first of them locks what all change and
# what live transactions lock before that, in their order.
_LOCK_ALL = (
    "LOCK TABLE job_keys, worker_leases, workers, adapter_revisions, intake_rejects, jobs, job_inputs, "
    "job_outputs, webhook_deliveries IN ACCESS EXCLUSIVE MODE"
)

_UNCLAIMED = sa.text("state = 'pending' AND relay IS NULL")


def upgrade() -> None:
    """Add relays; what is claimed at present comes free when that claim runs out, at `next_at` as before."""
    op.execute(_LOCK_ALL)
    op.create_table(
        "webhook_relays",
        sa.Column("incarnation", sa.Uuid(), nullable=False),
        sa.Column("expires_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("incarnation", name="pk_webhook_relays"),
    )
    op.add_column("webhook_deliveries", sa.Column("relay", sa.Uuid(), nullable=True))
    op.drop_index("ix_webhook_deliveries_due", "webhook_deliveries")
    op.create_index(
        "ix_webhook_deliveries_due", "webhook_deliveries", ["tenant", "next_at"], postgresql_where=_UNCLAIMED
    )
    op.create_index(
        "ix_webhook_deliveries_relay",
        "webhook_deliveries",
        ["relay"],
        postgresql_where=sa.text("relay IS NOT NULL"),
    )


def downgrade() -> None:
    """Forget relays: what they hold may be claimed at once, after a jump of the number that fences them."""
    op.execute(_LOCK_ALL)
    op.execute("UPDATE webhook_deliveries SET claim = claim + 1 WHERE relay IS NOT NULL")
    op.drop_index("ix_webhook_deliveries_relay", "webhook_deliveries")
    op.drop_index("ix_webhook_deliveries_due", "webhook_deliveries")
    op.drop_column("webhook_deliveries", "relay")
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["next_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.drop_table("webhook_relays")
