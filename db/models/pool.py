"""Pools, as people and commands know them; everything else names a pool by its id alone."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Mapped, mapped_column

from db.models.table import Table


class Pool(Table):
    """A pool's model, entered by its workers as they register."""

    __tablename__ = "pools"

    pool: Mapped[str] = mapped_column(primary_key=True)
    model_name: Mapped[str]
    served_model_name: Mapped[str | None]
    """The name that workers were told, if any; `model_name` is then the same."""
    model_path: Mapped[str]
    dtype: Mapped[str]
    quantization: Mapped[str | None]
    generation_config: Mapped[str]
    tokenizer: Mapped[str]
    """The digest of the tokenizer's files, which the pool's id does not cover."""
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The model's config.json, for those who check adapters where its folder is not."""
    registered_at: Mapped[datetime] = mapped_column(server_default=func.now())
