"""Keeps stream entries that cannot be dealt with, in `intake_rejects`, in blocks of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection

from db.records import RejectedEntry
from db.repositories.admission import AdmissionRepository
from lorayard.contract.messages import BODY_FIELD
from scheduler.leader_context import LeaderContext
from scheduler.streams import StreamEntry

MAX_BLOCK_ENTRIES: Final = 500
MAX_BLOCK_BYTES: Final = 16_000_000
"""In one transaction; an entry that is larger has one of its own."""

MAX_ERROR_CHARS: Final = 2000
MAX_LOGGED: Final = 10

logger = structlog.get_logger(__name__)


class Reject(NamedTuple):
    """An entry, and why it cannot be dealt with."""

    entry: StreamEntry
    reason: str


def put_aside(context: LeaderContext, rejects: Sequence[Reject]) -> None:
    """Keep entries for whoever looks into them; the same entry again changes nothing."""
    rows = [_to_row(reject) for reject in rejects]
    for block in _blocks(rows):

        def write(connection: Connection, block: Sequence[RejectedEntry] = block) -> None:
            AdmissionRepository(connection).put_aside(context.pool, block)

        context.transact(write)
    for reject in rejects[:MAX_LOGGED]:
        logger.error(
            "intake.put_aside",
            stream=reject.entry.stream,
            entry_id=reject.entry.entry_id,
            error=reject.reason[:300],
        )
    if len(rejects) > MAX_LOGGED:
        last = rejects[-1].entry
        logger.error(
            "intake.more_put_aside",
            entries=len(rejects) - MAX_LOGGED,
            up_to=last.entry_id,
            stream=last.stream,
        )


def _blocks(rows: Sequence[RejectedEntry]) -> Iterator[list[RejectedEntry]]:
    block: list[RejectedEntry] = []
    num_bytes = 0
    for row in rows:
        num_bytes += len(row.body)
        if block and (len(block) >= MAX_BLOCK_ENTRIES or num_bytes > MAX_BLOCK_BYTES):
            yield block
            block, num_bytes = [], len(row.body)
        block.append(row)
    if block:
        yield block


def _to_row(reject: Reject) -> RejectedEntry:
    entry = reject.entry
    body = entry.fields.get(BODY_FIELD)
    if body is None:
        body = b" ".join(name + b"=" + value for name, value in entry.fields.items())
    reason = reject.reason.replace("\x00", "").encode("utf-8", "replace").decode()[:MAX_ERROR_CHARS]
    return RejectedEntry(entry.stream, entry.entry_id, body, reason)
