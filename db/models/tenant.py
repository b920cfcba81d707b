"""Tenants: their share, their quotas, what they were served, and the secrets that sign their webhooks."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.table import Table


class Tenant(Table):
    """One tenant; while a secret is rotated, both the new and the previous one sign."""

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(primary_key=True)
    weight: Mapped[float] = mapped_column(server_default=text("1"))
    secret_current: Mapped[bytes | None]
    secret_previous: Mapped[bytes | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        CheckConstraint("weight > 0", name="weight"),
        CheckConstraint(
            "secret_previous IS NULL OR secret_current IS NOT NULL", name="previous_needs_current"
        ),
    )


class TenantService(Table):
    """What a tenant was served in a pool, as far as usage is folded, and what its counter is lifted by.

    Folding adds to it in the statement that adds to the hourly sums, so it is never behind them. `weight` is
    the one under which `lift` holds.
    """

    __tablename__ = "tenant_service"

    pool: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(primary_key=True)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    lift: Mapped[float] = mapped_column(server_default=text("0"))
    weight: Mapped[float] = mapped_column(server_default=text("1"))

    __table_args__ = (CheckConstraint("weight > 0", name="weight"),)


class TenantQuota(Table):
    """What a tenant may have queued in each pool, and submit there; None is no limit."""

    __tablename__ = "tenant_quotas"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    max_queued_jobs: Mapped[int | None]
    max_tokens_per_s: Mapped[float | None]

    __table_args__ = (
        CheckConstraint("max_queued_jobs >= 0", name="max_queued_jobs"),
        CheckConstraint("max_tokens_per_s > 0", name="max_tokens_per_s"),
        CheckConstraint(
            "max_queued_jobs IS NOT NULL OR max_tokens_per_s IS NOT NULL", name="limits_something"
        ),
    )
