"""Finds what should be gone once everything has been stopped in order but Redis and Postgres."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from redis import Redis

from tests.soak.audit.verdict import Finding

_LEASES = """
    SELECT 'job ' || job_id || ' is leased to ' || incarnation FROM jobs WHERE state = 'leased'
    UNION ALL
    SELECT 'the lease of worker ' || w.hostname || ', which is ' || w.state
    FROM workers w JOIN worker_leases l USING (incarnation)
    WHERE w.state NOT IN ('gone', 'lost') OR (l.lost AND w.state <> 'lost')
    UNION ALL
    SELECT 'entry ' || entry_id || ' of ' || stream || ' was put aside: ' || error FROM intake_rejects
"""


def find_leftovers(connection: psycopg.Connection[Any], redis: Redis, mark: str) -> Iterator[Finding]:
    """Look for leases, entries of streams and queues, processes and memory files."""
    for (what,) in connection.execute(_LEASES).fetchall():
        yield Finding("left", what)
    yield from _entries(redis)
    yield from _processes(mark)


def _entries(redis: Redis) -> Iterator[Finding]:
    """Streams that are read by the pipeline, and workers' queues; those of clients end by themselves."""
    for pattern in (
        "lorayard:{*}:jobs:*",
        "lorayard:{*}:control",
        "lorayard:{*}:completions",
        "lorayard:{*}:cmd:*",
    ):
        for key in redis.scan_iter(pattern):
            if length := redis.xlen(key):
                yield Finding("left", f"{length} stream entries in {_text(key)}")
            for group in _groups(redis, key):
                if pending := group.get("pending"):
                    yield Finding(
                        "left", f"{pending} stream entries of {_text(key)} were read and not acknowledged"
                    )
    for key in redis.scan_iter("lorayard.worker.*"):
        yield Finding("left", f"{redis.llen(key)} messages in the queue {_text(key)}")


def _groups(redis: Redis, key: Any) -> list[dict[str, Any]]:
    found: Any = redis.xinfo_groups(key)
    return list(found)


def _processes(mark: str) -> Iterator[Finding]:
    variable = f"SOAK_RUN={mark}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or folder.name == str(os.getpid()):
            continue
        try:
            if variable not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            yield Finding("left", f"process {folder.name}: {command[-120:]}")
            for descriptor in (folder / "fd").iterdir():
                if (target := str(descriptor.readlink())).startswith("/memfd:"):
                    yield Finding("left", f"memfd {target} of process {folder.name}")
        except OSError:
            continue  # it has ended meanwhile


def _text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)
