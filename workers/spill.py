"""Keeps results that the ledger refuses for no known reason in files, until it takes them after all."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import structlog

from db.judge import reason_of
from db.records import EndedAttempt

logger = structlog.get_logger(__name__)


class Spill:
    """One folder with one file for each result, readable by its owner alone; made when first needed."""

    def __init__(self, folder: Path, incarnation: str) -> None:
        self._folder = folder
        self._incarnation = incarnation

    def keep(self, ended: EndedAttempt, error: Exception) -> None:
        """Write a result down with the reason; if the disk refuses as well, say so."""
        path = self._path(ended)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                json.dump(self._record(ended, error), file)
            partial.replace(path)
        except OSError as refusal:
            where = f"in memory only: {refusal}"
        else:
            where = str(path)
        logger.critical(
            "commit.spilled",
            job_id=str(ended.job_id),
            attempt=ended.attempt,
            kept=where,
            error=reason_of(error),
            remedy="the job stays leased and is tried again; see Postgres' log for what refuses its row",
        )

    def forget(self, ended: EndedAttempt) -> None:
        """Remove the file of a result that is in the ledger by now."""
        try:
            self._path(ended).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("spill.not_removed", path=str(self._path(ended)), error=str(error))

    def _path(self, ended: EndedAttempt) -> Path:
        return self._folder / f"{ended.job_id}-{ended.attempt}.json"

    def _record(self, ended: EndedAttempt, error: Exception) -> dict[str, object]:
        fields = {field.name: getattr(ended, field.name) for field in dataclasses.fields(ended)}
        told = None if ended.error is None else {"code": ended.error.code, "message": ended.error.message}
        return fields | {
            "job_id": str(ended.job_id),
            "state": ended.state.value,
            "error": told,
            "incarnation": self._incarnation,
            "refused_with": reason_of(error),
        }
