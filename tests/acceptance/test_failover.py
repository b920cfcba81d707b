"""The primary of Redis, then that of Postgres, is lost: the URLs lead on to whoever was promoted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from examples.demo.stage import stack_config
from examples.tiny.tasks import prompt, sample_words
from lorayard import Client, JobHandle, JobSpec, Unavailable, as_completed
from lorayard.local import Stack
from tests.acceptance.replicated_servers import ReplicatedPostgres, ReplicatedRedis, replicated_servers
from tests.polling import eventually

JOBS = 400
PATIENCE_S = 90.0


class FailoverRig(NamedTuple):
    """A scheduler and a worker on servers that have replicas."""

    client: Client
    redis: ReplicatedRedis
    postgres: ReplicatedPostgres

    def ask(self, tenant: str) -> dict[JobHandle, str]:
        """Submit jobs, once the ledger has them; returns them with their right answers."""
        words = sample_words("upper", "held_out", JOBS, seed=3)
        specs = [JobSpec(prompt=prompt(word), max_tokens=24, tenant=tenant) for word in words]
        return dict(zip(self.client.submit_many(specs, confirm="ledger"), words, strict=True))

    def check(self, asked: dict[JobHandle, str]) -> None:
        """Every job has ended once, with the right answer."""
        ended = [handle.result(0) for handle in as_completed(list(asked), PATIENCE_S)]
        assert {result.job_id: result.output for result in ended} == {
            handle.id: answer for handle, answer in asked.items()
        }


def await_middle(asked: dict[JobHandle, str]) -> None:
    """Return while some of the jobs have ended and some have not."""
    eventually(lambda: any(handle.done() for handle in asked), PATIENCE_S, "a first end")
    assert not all(handle.done() for handle in asked), "all had ended before the fault"


@pytest.fixture(scope="module")
def rig(new_state_dir: Callable[[], Path]) -> Iterator[FailoverRig]:
    """One scheduler, one worker."""
    with replicated_servers(new_state_dir()) as (redis, postgres):
        config = replace(
            stack_config(new_state_dir()),
            parts=frozenset({"migrate", "scheduler", "workers"}),
            num_workers=1,
            redis_url=redis.url,
            database_url=postgres.url,
        )
        with Stack(config), Client(redis.url) as client:
            yield FailoverRig(client, redis, postgres)


def test_redis_fails_over(rig: FailoverRig) -> None:
    asked = rig.ask("redis-fails-over")
    await_middle(asked)

    rig.redis.lose_primary()

    rig.check(asked)
    rig.check(eventually(lambda: _unless_away(lambda: rig.ask("after-redis")), PATIENCE_S, "receipts"))


def test_postgres_fails_over(rig: FailoverRig) -> None:
    asked = rig.ask("postgres-fails-over")
    await_middle(asked)

    rig.postgres.lose_primary()

    rig.check(asked)
    rig.check(rig.ask("after-postgres"))
    assert rig.postgres.count("SELECT count(*) FROM jobs WHERE state <> 'succeeded'") == 0
    succeeded = "FROM attempts WHERE ended = 'succeeded'"
    assert rig.postgres.count(f"SELECT count(*) - count(DISTINCT job_id) {succeeded}") == 0


def _unless_away(ask: Callable[[], dict[JobHandle, str]]) -> dict[JobHandle, str]:
    try:
        return ask()
    except Unavailable:
        return {}
