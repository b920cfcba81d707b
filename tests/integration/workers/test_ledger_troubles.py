"""A whole small stack whose Postgres is in trouble for longer than a lease: the worker serves again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from lorayard.client import Client, JobHandle
from tests.integration.workers.scripted_leader import TINY
from tests.polling import eventually

if TYPE_CHECKING:
    from lorayard.local import Stack

LEASE_S = 3.0
STATEMENT_TIMEOUT_S = 2.0
TROUBLE_S = LEASE_S + STATEMENT_TIMEOUT_S
"""Longer than a lease, and than any statement may take."""

WORKER_TABLES = [
    "jobs",
    "job_inputs",
    "job_outputs",
    "attempts",
    "cancellations",
    "usage_deltas",
    "webhook_deliveries",
    "workers",
]


class Pipeline:
    """A client at one end of a stack, and Postgres' superuser at the other."""

    def __init__(self, stack: Stack) -> None:
        from lorayard.local import plain_url

        self.url = plain_url(stack.postgres.url)
        self.client = Client(stack.redis.url)
        self.answer = self.ask(1)[0].result(60).output
        self._log = stack.config.state_dir / "logs" / "worker-1.log"

    def ask(self, number: int = 3) -> list[JobHandle]:
        """Submit jobs, all with the same right answer."""
        return [self.client.submit("hello>", max_tokens=8) for _ in range(number)]

    def connect(self) -> psycopg.Connection[Any]:
        """Open a superuser's session that commits each statement."""
        return psycopg.connect(self.url, autocommit=True)

    def sql(self, statement: str) -> list[Any]:
        """Run one statement as a superuser."""
        with self.connect() as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def incarnations(self) -> list[str]:
        """Name all that ever registered."""
        return [row[0] for row in self.sql("SELECT incarnation FROM workers ORDER BY registered_at")]

    def log(self) -> str:
        """Read what the worker has logged."""
        return self._log.read_text()


@pytest.fixture(scope="module")
def pipeline(new_initialised_dir: Callable[[], Path]) -> Iterator[Pipeline]:
    """A scheduler and a worker with short leases on servers of their own."""
    from lorayard.local import SERVERS, Stack, StackConfig

    config = StackConfig(
        state_dir=new_initialised_dir(),
        parts=SERVERS | {"migrate", "scheduler", "workers"},
        durable=False,
        num_workers=1,
        model=TINY / "base",
        drain_grace_s=5.0,
        extra_env={
            "LORAYARD_WORKER_LEASE_S": str(LEASE_S),
            "LORAYARD_STATEMENT_TIMEOUT_MS": str(int(STATEMENT_TIMEOUT_S * 1000)),
        },
    )
    with Stack(config) as stack:
        pipeline = Pipeline(stack)
        with pipeline.client:
            yield pipeline


def passes(seconds: float) -> None:
    """Let the trouble last."""
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until, seconds + 5.0)


@contextlib.contextmanager
def locked(pipeline: Pipeline, table: str, mode: str = "ACCESS EXCLUSIVE") -> Iterator[None]:
    """Hold a lock on a table for longer than the pipeline bears."""
    with psycopg.connect(pipeline.url) as session:
        session.execute(f"LOCK TABLE {table} IN {mode} MODE")
        yield
        passes(TROUBLE_S)
        session.rollback()


def serves_again(pipeline: Pipeline, asked: list[JobHandle]) -> None:
    """Check that nothing is lost or called wrong, and that new work is done."""
    for handle in [*asked, *pipeline.ask()]:
        result = handle.result(60)
        assert (result.state, result.output) == ("succeeded", pipeline.answer), result
    assert "Exception in thread" not in pipeline.log()


def test_worker_and_scheduler_agree_on_how_long_a_lease_lasts(pipeline: Pipeline) -> None:
    ((left_s,),) = pipeline.sql("SELECT extract(epoch FROM max(expires_at) - now()) FROM worker_leases")

    assert left_s <= LEASE_S


@pytest.mark.parametrize("table", WORKER_TABLES)
def test_a_table_locked_for_longer_than_a_lease_costs_no_worker_and_no_result(
    pipeline: Pipeline, table: str
) -> None:
    serves_again(pipeline, [])
    before = pipeline.incarnations()

    with locked(pipeline, table):
        asked = pipeline.ask()

    serves_again(pipeline, asked)
    assert pipeline.incarnations() == before


@pytest.mark.parametrize("mode", ["ACCESS EXCLUSIVE", "SHARE"])
def test_leases_locked_for_longer_than_they_last_cost_no_worker_either(pipeline: Pipeline, mode: str) -> None:
    serves_again(pipeline, [])
    before = pipeline.incarnations()

    with locked(pipeline, "worker_leases", mode):
        asked = pipeline.ask()

    serves_again(pipeline, asked)
    assert pipeline.incarnations() == before


def test_results_that_wait_for_an_index_to_be_made_are_kept(pipeline: Pipeline) -> None:
    before = pipeline.incarnations()

    with locked(pipeline, "job_outputs", "SHARE"):
        asked = pipeline.ask()
        eventually(lambda: "commit.waits" in pipeline.log(), 20.0, "a commit that waits")

    serves_again(pipeline, asked)
    assert pipeline.incarnations() == before


def test_a_read_only_postgres_is_waited_out(pipeline: Pipeline) -> None:
    serves_again(pipeline, [])
    before = pipeline.incarnations()
    asked = pipeline.ask()

    set_read_only(pipeline, "on")
    asked += pipeline.ask()
    passes(10.0)
    set_read_only(pipeline, "off")

    serves_again(pipeline, asked)
    assert pipeline.incarnations() == before


def test_a_postgres_without_a_free_connection_is_waited_out(pipeline: Pipeline) -> None:
    serves_again(pipeline, [])
    before = pipeline.incarnations()
    asked = pipeline.ask()

    with pipeline.connect() as admin, contextlib.ExitStack() as sessions:
        ours = {admin.info.backend_pid}

        def take_all() -> bool:
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    ours.add(sessions.enter_context(pipeline.connect()).info.backend_pid)
            # Whoever of the pipeline is still connected loses its place to us.
            others = admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND NOT pid = ANY(%s)",
                [list(ours)],
            )
            return not others.fetchall()

        eventually(take_all, 30.0, "every connection")
        asked += pipeline.ask()
        passes(TROUBLE_S)

    serves_again(pipeline, asked)
    assert pipeline.incarnations() == before


def set_read_only(pipeline: Pipeline, value: str) -> None:
    """Turn the server read-only or back, for old sessions as for new ones."""
    with pipeline.connect() as session:
        session.execute("SET default_transaction_read_only = off")
        session.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        session.execute("SELECT pg_reload_conf()")
        session.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
