"""The submit guard: jobs enter the intake streams only while the backlog has room, decided inside Redis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from redis import Redis

from lorayard.contract.errors import QueueFull, QuotaExceeded
from lorayard.contract.job import PRIORITIES, Priority
from lorayard.contract.keys import PoolKeys
from lorayard.contract.version import RELEASE

# Used if no leader has published its own bounds: what a Redis with 1 GB to spare holds without harm.
DEFAULT_MAX_ENTRIES = 100_000
DEFAULT_MAX_BYTES = 512 * 1024 * 1024
DEFAULT_RETRY_AFTER_S = 1.0
BURST_S = 60.0
"""A tenant that has submitted nothing for so long may submit as many seconds of its tokens at once."""
STALE_AFTER_MS = 5_000
"""Ten publications missed: the leader is gone, its view of the ledger says nothing any more."""


class IntakeEntry(NamedTuple):
    """One job ready to be appended."""

    priority: Priority
    body: bytes
    tenant: str = "default"
    tokens: int = 0
    """Those of the prompt, estimated, and those that it may generate."""


class Appended(NamedTuple):
    """What the guard let in: the entry ids of the first jobs, and why the next one was refused, if it was."""

    entry_ids: tuple[bytes, ...]
    refusal: QueueFull | None


class SubmitGuard:
    """Append entries to a pool's intake, in the order given, up to the first that finds no room."""

    def __init__(self, redis: Redis) -> None:
        self._script = redis.register_script(files("lorayard.client").joinpath("submit.lua").read_text())

    def append(self, keys: PoolKeys, entries: Sequence[IntakeEntry]) -> Appended:
        """Append in one atomic call; raises redis-py's errors."""
        arguments: list[Any] = [
            DEFAULT_MAX_ENTRIES, DEFAULT_MAX_BYTES, STALE_AFTER_MS, DEFAULT_RETRY_AFTER_S, RELEASE,
            BURST_S,
        ]  # fmt: skip
        for entry in entries:
            stream = PRIORITIES.index(entry.priority) + 1
            arguments += (f"{stream} {entry.tokens} {entry.tenant}", entry.body)
        names = [keys.intake_bytes, keys.admission, keys.quotas, keys.quota_use, *keys.all_jobs]
        reply: list[Any] = self._script(keys=names, args=arguments)
        return Appended(tuple(reply[0]), _refusal(reply[1:]) if len(reply) > 1 else None)


def _refusal(parts: Sequence[bytes]) -> QueueFull:
    reason, figure, limit, retry, tenant = (part.decode() for part in parts)
    retry_after_s = _positive(retry)
    again = f"submit again in {retry_after_s:g} s"
    if reason == "tenant_jobs":
        message = f"tenant {tenant!r} has {figure} jobs queued, at most {limit} may be: {again}"
        return QuotaExceeded(message, retry_after_s, tenant)
    if reason == "tenant_tokens":
        message = f"tenant {tenant!r} has submitted its {limit} tokens per second: {again}"
        return QuotaExceeded(message, retry_after_s, tenant)
    meaning = {
        "entries": f"{figure} jobs wait to be admitted, at most {limit} may",
        "bytes": f"the intake would hold {figure} bytes, at most {limit} may wait",
        "ledger": f"{figure} jobs wait for admission and the ledger has room for {limit}",
    }[reason]
    return QueueFull(f"the queue is full: {meaning}; {again}", retry_after_s)


def _positive(text: str) -> float:
    """Read a published duration; nonsense must not become a busy loop at the producer."""
    try:
        value = float(text)
    except ValueError:
        return DEFAULT_RETRY_AFTER_S
    return value if math.isfinite(value) and value > 0 else DEFAULT_RETRY_AFTER_S
