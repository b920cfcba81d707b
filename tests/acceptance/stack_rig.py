"""A running Lorayard as the acceptance tests use it, with the checks that every fault must leave true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import psycopg

from examples.tiny.tasks import TASKS, prompt, sample_words
from lorayard import Client, JobHandle, JobResult, JobSpec, JobState, as_completed
from lorayard.local import Stack
from lorayard.local.postgres_server import plain_url
from tests.polling import eventually

PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A submitted job with its right answer."""

    handle: JobHandle
    answer: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What the ledger charges a tenant."""

    jobs: int
    prompt_tokens: int
    completion_tokens: int


class StackRig:
    """A stack with every shipped adapter added, and a client of it."""

    def __init__(self, stack: Stack, client: Client) -> None:
        self.stack = stack
        self.client = client

    def ask(self, count: int, tenant: str) -> list[Asked]:
        """Submit `count` jobs over all adapters and the base, in turn."""
        names: list[str | None] = [*TASKS, None]
        per_name = count // len(names) + 1
        words = {name: sample_words(name or "upper", "held_out", per_name, seed=11) for name in names}
        asked = [(names[number % len(names)], number // len(names)) for number in range(count)]
        specs = [
            JobSpec(prompt=prompt(words[name][index]), adapter=name, max_tokens=24, tenant=tenant)
            for name, index in asked
        ]
        answers = [
            TASKS[name].answer(words[name][index]) if name else words[name][index] for name, index in asked
        ]
        handles = self.client.submit_many(specs)
        return [Asked(handle, answer) for handle, answer in zip(handles, answers, strict=True)]

    def await_share(self, asked: Sequence[Asked], share: float) -> None:
        """Return once this share of the jobs has ended, so that a fault strikes in mid-run."""
        due = int(len(asked) * share)
        eventually(lambda: sum(item.handle.done() for item in asked) >= due, PATIENCE_S, f"{due} ended jobs")
        assert not all(item.handle.done() for item in asked), "all had ended before the fault"

    def results(self, asked: Sequence[Asked]) -> list[JobResult]:
        """Wait for all; every client hears of every end."""
        ended = [handle.result(0) for handle in as_completed([item.handle for item in asked], PATIENCE_S)]
        assert len(ended) == len(asked)
        return ended

    def check(self, asked: Sequence[Asked], tenant: str) -> list[JobResult]:
        """Every accepted job has exactly one terminal row, every answer is right, usage adds up."""
        results = {result.job_id: result for result in self.results(asked)}

        assert {item.handle.id: results[item.handle.id].output for item in asked} == {
            item.handle.id: item.answer for item in asked
        }
        assert self.terminal_rows([item.handle.id for item in asked]) == {
            item.handle.id: JobState.SUCCEEDED for item in asked
        }
        assert self.usage(tenant) == Usage(
            jobs=len(asked),
            prompt_tokens=sum(result.prompt_tokens for result in results.values()),
            completion_tokens=sum(result.completion_tokens for result in results.values()),
        )
        return list(results.values())

    def terminal_rows(self, job_ids: Sequence[UUID]) -> dict[UUID, str]:
        """State by job, straight from the table; a job id is its primary key, so one row each at most."""
        with psycopg.connect(plain_url(self.stack.postgres.url)) as connection:
            rows = connection.execute(
                "SELECT job_id, state FROM jobs JOIN job_outputs USING (job_id) WHERE job_id = ANY(%s)",
                (list(job_ids),),
            ).fetchall()
        assert len(rows) == len({row[0] for row in rows})
        return dict(rows)

    def usage(self, tenant: str) -> Usage:
        """Usage of one tenant, folded or not yet."""
        with psycopg.connect(plain_url(self.stack.postgres.url)) as connection:
            row = connection.execute(
                "SELECT sum(jobs), sum(prompt_tokens), sum(completion_tokens) FROM ("
                " SELECT jobs, prompt_tokens, completion_tokens FROM usage_deltas WHERE tenant = %(tenant)s"
                " UNION ALL"
                " SELECT jobs, prompt_tokens, completion_tokens FROM adapter_usage WHERE tenant = %(tenant)s"
                ") AS charged",
                {"tenant": tenant},
            ).fetchone()
        assert row is not None
        return Usage(*(int(value or 0) for value in row))

    def wasted_ms(self, tenant: str) -> float:
        """Device time of a tenant's attempts that came to nothing, folded or not yet."""
        with psycopg.connect(plain_url(self.stack.postgres.url)) as connection:
            row = connection.execute(
                "SELECT sum(wasted_device_ms) FROM ("
                " SELECT wasted_device_ms FROM usage_deltas WHERE tenant = %(tenant)s"
                " UNION ALL SELECT wasted_device_ms FROM adapter_usage WHERE tenant = %(tenant)s"
                ") AS wasted",
                {"tenant": tenant},
            ).fetchone()
        return float(row[0] or 0) if row else 0.0
