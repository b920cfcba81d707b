"""Usage: deltas that are only ever inserted, folded into sums per adapter, tenant and hour."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.table import Table

ZERO = text("0")


class Counters:
    """What is counted, the same in a delta and in a sum."""

    jobs: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    device_ms: Mapped[float] = mapped_column(server_default=ZERO)
    queue_ms: Mapped[float] = mapped_column(server_default=ZERO)
    loads: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    load_ms: Mapped[float] = mapped_column(server_default=ZERO)
    hits: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    evictions: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    failures: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    wasted_device_ms: Mapped[float] = mapped_column(server_default=ZERO)


class UsageDelta(Counters, Table):
    """What one commit group added for one adapter and tenant; folding deletes it."""

    __tablename__ = "usage_deltas"

    incarnation: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True)
    pool: Mapped[str]
    tenant: Mapped[str]
    adapter: Mapped[str]
    """'' is the base model: a primary key of the sums cannot hold NULL."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AdapterUsage(Counters, Table):
    """What one adapter and tenant used in one hour of the database's clock."""

    __tablename__ = "adapter_usage"

    pool: Mapped[str] = mapped_column(primary_key=True)
    adapter: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)

    __table_args__ = (Index("ix_adapter_usage_hour", "hour"), {"postgresql_with": {"fillfactor": "70"}})
