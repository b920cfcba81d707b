"""The table of attempts in hand."""

from __future__ import annotations

from tests.unit.workers.batch_jobs import batch_job
from workers.attempts import AttemptTable, Phase, StopReason


def _table() -> tuple[AttemptTable, list[str]]:
    settled: list[str] = []
    return AttemptTable(settled.append), settled


def test_an_attempt_is_taken_once_while_held_and_after_it_is_settled() -> None:
    table, _ = _table()
    job = batch_job()

    first = table.take("task", [job, job], now=0.0)
    again = table.take("other", [job], now=1.0)
    table.settle([first[0].key])
    later = table.take("task", [job], now=2.0)

    assert [held.job for held in first] == [job]
    assert again == later == []


def test_the_next_attempt_of_a_job_is_another_matter() -> None:
    table, _ = _table()
    job = batch_job()
    table.take("task", [job], now=0.0)

    assert len(table.take("task", [job.model_copy(update={"attempt": 2})], now=0.0)) == 1


def test_a_task_is_open_until_its_last_attempt_is_settled() -> None:
    table, settled = _table()
    first, second = table.take("task", [batch_job(), batch_job()], now=0.0)

    table.settle([first.key, first.key])

    assert table.is_open("task")
    assert settled == []
    table.settle([second.key])
    assert not table.is_open("task")
    assert settled == ["task"]


def test_only_the_first_reason_to_stop_counts() -> None:
    table, _ = _table()
    (held,) = table.take("task", [batch_job()], now=0.0)

    assert table.stop(held.key, StopReason.CANCELLED) is held
    assert table.stop(held.key, StopReason.RELEASED) is None
    assert held.stop_reason is StopReason.CANCELLED


def test_an_ended_attempt_can_be_neither_stopped_nor_ended_again() -> None:
    table, _ = _table()
    (held,) = table.take("task", [batch_job()], now=0.0)

    assert table.end(held.key) is held
    assert table.end(held.key) is None
    assert table.stop(held.key, StopReason.CANCELLED) is None
    assert table.live() == []
    assert len(table) == 1


def test_only_started_attempts_are_reported_running() -> None:
    table, _ = _table()
    waiting, running, ended = table.take("task", [batch_job(), batch_job(), batch_job()], now=0.0)
    table.start(running.key, 1.0)
    table.start(ended.key, 1.0)
    table.end(ended.key)

    assert {held.job_id: held.running for held in table.report()} == {
        waiting.key.job_id: False,
        running.key.job_id: True,
        ended.key.job_id: False,
    }


def test_only_waiting_attempts_past_their_deadline_are_overdue() -> None:
    table, _ = _table()
    late, started, early, free = table.take(
        "task",
        [
            batch_job(first_token_within_s=1.0),
            batch_job(first_token_within_s=1.0),
            batch_job(first_token_within_s=9.0),
            batch_job(),
        ],
        now=10.0,
    )
    table.start(started.key, 10.5)

    assert table.overdue(11.0) == [late]
    assert {held.phase for held in (late, early, free)} == {Phase.WAITING}


def test_live_attempts_are_found_by_job_and_by_task() -> None:
    table, _ = _table()
    (mine,) = table.take("mine", [batch_job()], now=0.0)
    (other,) = table.take("other", [batch_job()], now=0.0)

    assert table.live(task_id="mine") == [mine]
    assert table.live(job_ids={other.key.job_id}) == [other]
    assert table.live() == [mine, other]
