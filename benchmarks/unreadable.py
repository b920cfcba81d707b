"""How long entries that nobody can read keep the leader: `python -m benchmarks.unreadable [--entries N]`.

A stack without workers; unreadable entries come into the intake in one go, short ones and then such of 16 KB,
and right behind them a job. The clock runs from the last entry until all are put aside in the ledger, and
until the job is admitted. The exit status is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import psycopg
from redis import Redis

from benchmarks.figures import Figure, verdicts
from benchmarks.machine import describe_run, load_average
from examples.demo.stage import stack_config
from lorayard import Client
from lorayard.client.directory import PoolDirectory
from lorayard.contract.keys import PoolKeys
from lorayard.local import SERVERS, Stack, plain_url

GOAL_S: Final = 2.0
SIZES: Final = (16, 16_384)
PATIENCE_S: Final = 120.0


def main() -> int:
    """Print the machine and the figures; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unreadable", description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000, metavar="N", help="unreadable ones")
    given = parser.parse_args()
    facts = describe_run([], num_threads=1)
    print(f"{facts['machine']}; {facts['date']}, load {load_average()}\n")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="lorayard-unreadable-") as folder:
        Path(folder).chmod(0o711)  # Postgres, as a user of its own, passes through
        config = stack_config(Path(folder) / "state")
        with Stack(dataclasses.replace(config, parts=SERVERS | {"migrate", "scheduler"})) as stack:
            for size in SIZES:
                figures += _measure(stack, given.entries, size)
    print(verdicts(figures))
    return 0 if all(figure.is_met for figure in figures) else 1


def _measure(stack: Stack, num_entries: int, size: int) -> list[Figure]:
    """Put entries of a size before a job; the goal is for short ones."""
    environment = stack.client_env()
    with (
        Redis.from_url(environment["LORAYARD_REDIS_URL"]) as redis,
        Client(environment["LORAYARD_REDIS_URL"]) as client,
        psycopg.connect(plain_url(environment["LORAYARD_DATABASE_URL"]), autocommit=True) as ledger,
    ):
        pool = PoolDirectory(redis, None).pools()[0]
        stream = PoolKeys(pool.pool).jobs("normal")
        before = _count(ledger)
        pipeline = redis.pipeline(transaction=True)  # all of them are there at once
        for number in range(num_entries):
            pipeline.xadd(stream, {"body": f"{{unreadable {number} ".encode() + b"\xff" * size})
        pipeline.execute()
        began_at = time.monotonic()
        handle = client.submit("a job behind them")
        admitted_s = aside_s = None
        while aside_s is None or admitted_s is None:
            if aside_s is None and _count(ledger) - before >= num_entries:
                aside_s = time.monotonic() - began_at
            if (
                admitted_s is None
                and ledger.execute("SELECT 1 FROM jobs WHERE job_id = %s", (handle.id,)).fetchone()
            ):
                admitted_s = time.monotonic() - began_at
            if time.monotonic() - began_at > PATIENCE_S:
                raise TimeoutError(
                    f"{_count(ledger) - before} of {num_entries} put aside in {PATIENCE_S:g} s"
                )
            time.sleep(0.005)
    name = f"{num_entries:,} entries of {size:,} bytes"
    most = GOAL_S if size == min(SIZES) else None
    return [
        Figure(f"{name} are put aside after", aside_s, "s", most=most),
        Figure(f"a job behind {name} is admitted after", admitted_s, "s", most=most),
    ]


def _count(ledger: psycopg.Connection[tuple[int]]) -> int:
    row = ledger.execute("SELECT count(*) FROM intake_rejects").fetchone()
    assert row is not None
    return row[0]


if __name__ == "__main__":
    sys.exit(main())
