"""What people have paused."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from db.models.table import Table, one_of


class Pause(Table):
    """A pool, a tenant or an adapter whose queued jobs wait until it is resumed.

    `pool` is '*' for a tenant, who is paused everywhere; `name` of a pool is its id.
    """

    __tablename__ = "pauses"

    kind: Mapped[str] = mapped_column(primary_key=True)
    pool: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    paused_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        one_of("kind", ("pool", "tenant", "adapter")),
        CheckConstraint("(kind = 'tenant') = (pool = '*')", name="tenant_everywhere"),
    )
