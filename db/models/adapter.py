"""Adapters: a name that moves, over revisions that never change."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKeyConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Text

from db.models.table import Table, one_of

REVISION_STATES = ("active", "quarantined", "collecting", "collected")
"""Unused for long enough it is `collecting`, and without its files `collected`, until it is added again."""


class AdapterRevision(Table):
    """One set of LoRA weights, named by its content digest."""

    __tablename__ = "adapter_revisions"

    pool: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    rank: Mapped[int]
    targets: Mapped[list[str]] = mapped_column(ARRAY(Text))
    bytes: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(server_default=text("'active'"))
    reason: Mapped[str | None]
    warnings: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    """What was uncertain when it was added, such as which base it was trained on."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    unused_since: Mapped[datetime | None]
    """When a sweep first found that no name and no unfinished job needs it."""

    __table_args__ = (one_of("state", REVISION_STATES),)


class Adapter(Table):
    """A name, and the revision that new jobs get under it."""

    __tablename__ = "adapters"

    pool: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    current_revision: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'active'"))
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        one_of("state", ("active", "removed")),
        ForeignKeyConstraint(
            ["pool", "current_revision"], ["adapter_revisions.pool", "adapter_revisions.digest"]
        ),
    )


class StoreFailure(Table):
    """A revision that could not be loaded from one store (`scheduler.store_failures`), kept to be shown."""

    __tablename__ = "store_failures"

    pool: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    store: Mapped[str] = mapped_column(primary_key=True)
    code: Mapped[str]
    reason: Mapped[str]
    first_at: Mapped[datetime]
    failed_at: Mapped[datetime]
    cools_until: Mapped[datetime]
    pause_s: Mapped[float]
    tries: Mapped[int]


class Catalogue(Table):
    """A pool's number of catalogue changes, so that a mirror knows when it is behind."""

    __tablename__ = "catalogues"

    pool: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
