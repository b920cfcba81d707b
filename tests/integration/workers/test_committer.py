"""Results on their way into a real ledger: only a bad row fails, and only for a reason that is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from db.database import Database
from db.records import EndedAttempt, FinishedJob
from lorayard.contract.messages import BatchJob
from lorayard.contract.states import JobState
from tests.integration.db.ledger import Ledger, ended
from tests.polling import eventually
from workers.attempts import AttemptTable
from workers.committer import Committer
from workers.ledger_health import LedgerHealth
from workers.outcomes import Outcome
from workers.result_ledger import PostgresLedger
from workers.spill import Spill

REFUSE = """
    CREATE TABLE refusals (job_id uuid, sqlstate text);
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE state text;
        BEGIN
            SELECT r.sqlstate INTO state FROM refusals r WHERE r.job_id = NEW.job_id;
            IF state IS NOT NULL THEN RAISE EXCEPTION 'not today' USING ERRCODE = state; END IF;
            RETURN NEW;
        END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON job_outputs FOR EACH ROW EXECUTE FUNCTION refuse();
"""


class CommitterRig:
    """A worker's committer on a real ledger, with a lease that is always just renewed."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self.ledger = Ledger(database_url)
        self.ledger.worker()
        self.database = Database(database_url, pool_size=1, lock_timeout_ms=500, statement_timeout_ms=1000)
        self.attempts = AttemptTable(lambda _: None)
        self.announced: list[FinishedJob] = []
        self.spill = folder / "spill"
        self.committer = Committer(
            PostgresLedger(self.database, "w1"),
            self.attempts,
            lambda finished, _failures: self.announced.extend(finished),
            health=AlwaysRenewed(),
            spill=Spill(self.spill, "w1"),
            max_uncommitted=1000,
            on_broken=lambda thread: pytest.fail(f"{thread} gave up"),
            suspect_after_s=0.3,
        )

    def leased(self, number: int) -> list[BatchJob]:
        """Have some jobs in hand."""
        jobs = self.ledger.lease("w1", *self.ledger.admitted(number))
        self.attempts.take("task", jobs, 0.0)
        return jobs

    def put(self, *ends: EndedAttempt) -> None:
        """Hand in ends as one group."""
        self.committer.put(*map(Outcome, ends))

    def refuse(self, job: BatchJob, sqlstate: str) -> None:
        """Have Postgres refuse a job's output."""
        self.ledger.sql("INSERT INTO refusals VALUES (:id, :state)", id=job.job_id, state=sqlstate)

    def states(self, jobs: Sequence[BatchJob]) -> list[str]:
        """List the states of jobs."""
        return [self.ledger.state(job.job_id).value for job in jobs]


class AlwaysRenewed(LedgerHealth):
    """The health of a worker whose lease thread has no trouble."""

    def has_renewed_within(self, seconds: float) -> bool:
        return True


@pytest.fixture
def rig(database_url: str, tmp_path: Path) -> Iterator[CommitterRig]:
    rig = CommitterRig(database_url, tmp_path)
    with rig.ledger.database.transaction() as connection:
        connection.exec_driver_sql(REFUSE)
    yield rig
    rig.committer.close()
    rig.database.dispose()
    rig.ledger.database.dispose()


BAD_VALUES: list[dict[str, Any]] = [
    {"output": "a\x00b"},
    {"output": "a\udc80b"},
    {"completion_tokens": 2**31},
    {"completion_tokens": 2**80},
]


@pytest.mark.parametrize("bad", BAD_VALUES, ids=repr)
def test_only_the_row_with_a_bad_value_fails(rig: CommitterRig, bad: dict[str, Any]) -> None:
    jobs = rig.leased(9)
    rig.put(*(ended(job, **({"output": "good"} | (bad if job is jobs[4] else {}))) for job in jobs))

    rig.committer.start()

    assert rig.committer.flush(30)
    assert rig.states(jobs) == ["succeeded"] * 4 + ["failed"] + ["succeeded"] * 4
    error = rig.ledger.get(jobs[4].job_id).error
    assert error is not None
    assert error.code == "result_refused"
    assert len(rig.attempts) == 0
    assert len(rig.announced) == 9


def test_a_row_whose_refusal_is_refused_too_is_spilled_as_it_came(rig: CommitterRig) -> None:
    good, bad = rig.leased(2)
    rig.put(ended(good, output="good"), ended(bad, output="private", revision="r\x00"))

    rig.committer.start()

    (path,) = eventually(lambda: list(rig.spill.glob("*.json")), 20.0)
    eventually(lambda: rig.states([good, bad]) == ["succeeded", "leased"])
    assert json.loads(path.read_text())["output"] == "private"


@pytest.mark.parametrize("sqlstate", ["57014", "25006", "40001", "26000", "0A000", "55P03", "53100", "42703"])
def test_what_is_not_the_rows_fault_is_waited_out(rig: CommitterRig, sqlstate: str) -> None:
    rig.committer._suspect_after_s = 60.0
    jobs = rig.leased(3)
    rig.refuse(jobs[1], sqlstate)
    rig.put(*(ended(job, output="good") for job in jobs))
    tries = counted(rig.database)

    rig.committer.start()
    eventually(lambda: len(tries) >= 2, 20.0)
    assert rig.states(jobs) == ["leased"] * 3
    rig.ledger.sql("DELETE FROM refusals")

    assert rig.committer.flush(30)
    assert rig.states(jobs) == ["succeeded"] * 3
    assert not rig.spill.exists()


def test_a_row_refused_for_no_known_reason_is_spilled_and_goes_in_later(rig: CommitterRig) -> None:
    jobs = rig.leased(5)
    rig.refuse(jobs[3], "XX000")
    rig.put(*(ended(job, output="good") for job in jobs))

    rig.committer.start()
    (path,) = eventually(lambda: list(rig.spill.glob("*.json")), 30.0)
    later = rig.leased(2)
    rig.put(*(ended(job, output="later") for job in later))
    eventually(lambda: len(rig.announced) == 6, 30.0)

    assert json.loads(path.read_text())["output"] == "good"
    assert rig.states(jobs) == ["succeeded"] * 3 + ["leased", "succeeded"]
    assert rig.states(later) == ["succeeded"] * 2
    assert [held.job_id for held in rig.attempts.report()] == [jobs[3].job_id]

    rig.ledger.sql("DELETE FROM refusals")
    eventually(lambda: rig.ledger.state(jobs[3].job_id) is JobState.SUCCEEDED, 30.0)
    assert rig.ledger.get(jobs[3].job_id).output == "good"
    eventually(lambda: not list(rig.spill.iterdir()))


def test_a_result_that_is_in_the_ledger_already_is_read_back(rig: CommitterRig) -> None:
    jobs = rig.leased(3)
    written = ended(jobs[0], output="good")
    assert len(rig.ledger.finish("w1", written, seq=0)) == 1
    # As after a restore that has the outputs of a moment later than the jobs.
    rig.ledger.sql("INSERT INTO job_outputs (job_id, output) VALUES (:id, 'good')", id=jobs[1].job_id)
    rig.put(*(ended(job, output="good") for job in jobs))

    rig.committer.start()

    eventually(lambda: jobs[2].job_id in {job.job_id for job in rig.announced}, 20.0)
    assert rig.states(jobs) == ["succeeded", "leased", "succeeded"]
    (path,) = eventually(lambda: list(rig.spill.glob("*.json")), 20.0)
    assert str(jobs[1].job_id) in path.name


def counted(database: Database) -> list[None]:
    """Count the transactions of a database from now on."""
    tries: list[None] = []
    run = database.run

    def count(work: Callable[..., Any]) -> Any:
        tries.append(None)
        return run(work)

    database.run = count  # type: ignore[method-assign]
    return tries
