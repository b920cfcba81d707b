"""The outbox: one webhook for each ended job that asked for one, written with its end; and the relays."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.table import Table, one_of

DELIVERY_STATES = ("pending", "delivered", "dead")
_UNCLAIMED = text("state = 'pending' AND relay IS NULL")


class WebhookDelivery(Table):
    """One webhook on its way; a job ends once, so it has one at most."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    job_id: Mapped[UUID]
    tenant: Mapped[str]
    url: Mapped[str]
    host: Mapped[str]
    event_type: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'pending'"))
    claim: Mapped[int] = mapped_column(server_default=text("0"))
    """Fencing number: grows with each claim, and whoever finishes must name it."""
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    next_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When it may next be claimed."""
    relay: Mapped[UUID | None]
    """The incarnation of the relay that has claimed it; the claim holds as long as that one's lease."""
    status: Mapped[int | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        one_of("state", DELIVERY_STATES),
        Index("ix_webhook_deliveries_job_id", "job_id", unique=True),
        Index("ix_webhook_deliveries_due", "tenant", "next_at", postgresql_where=_UNCLAIMED),
        Index("ix_webhook_deliveries_relay", "relay", postgresql_where=text("relay IS NOT NULL")),
        Index("ix_webhook_deliveries_dead", "created_at", postgresql_where=text("state = 'dead'")),
        {"postgresql_with": {"fillfactor": "80", "autovacuum_vacuum_scale_factor": "0.02"}},
    )


class WebhookRelay(Table):
    """One incarnation of a relay, and until when its claims hold unless it renews its lease."""

    __tablename__ = "webhook_relays"

    incarnation: Mapped[UUID] = mapped_column(primary_key=True)
    expires_at: Mapped[datetime]
