"""A pool has one leader, and one that was deposed cannot commit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from db.errors import Deposed
from db.repositories.admission import AdmissionRepository
from db.repositories.terms import TermRepository
from tests.integration.db.ledger import POOL, Ledger, new_job


def test_of_many_candidates_one_takes_office(ledger: Ledger) -> None:
    ledger.sql("UPDATE scheduler_terms SET expires_at = now()")

    with ThreadPoolExecutor(8) as threads:
        terms = list(threads.map(lambda n: ledger.run(TermRepository, "take", POOL, f"s{n}", 60.0), range(8)))

    assert sorted(term for term in terms if term is not None) == [2]


def test_nobody_takes_office_while_the_term_runs(ledger: Ledger) -> None:
    assert ledger.run(TermRepository, "take", POOL, "other", 60.0) is None
    assert ledger.run(TermRepository, "take", "another pool", "other", 60.0) == 1


def test_a_deposed_leader_can_neither_renew_nor_commit(ledger: Ledger) -> None:
    ledger.sql("UPDATE scheduler_terms SET expires_at = now()")
    assert ledger.run(TermRepository, "take", POOL, "other", 60.0) == 2

    def admit_under_the_old_term(connection: Connection) -> None:
        AdmissionRepository(connection).admit(POOL, [new_job()])
        TermRepository(connection).check(POOL, 1)

    assert not ledger.run(TermRepository, "renew", POOL, "leader", 1, 60.0)
    with pytest.raises(Deposed):
        ledger.database.run(admit_under_the_old_term)

    assert ledger.sql("SELECT * FROM jobs") == []


def test_nobody_takes_office_under_a_transaction_that_has_checked(ledger: Ledger) -> None:
    with ThreadPoolExecutor(1) as threads:
        with ledger.database.transaction() as connection:
            TermRepository(connection).check(POOL, 1)
            ledger_of_another = threads.submit(_expire_and_take, ledger)
            assert not ledger_of_another.done()
            AdmissionRepository(connection).admit(POOL, [new_job()])
            TermRepository(connection).check(POOL, 1)

        assert ledger_of_another.result(timeout=10) == 2


def _expire_and_take(ledger: Ledger) -> int | None:
    ledger.sql("UPDATE scheduler_terms SET expires_at = now()")
    term: int | None = ledger.run(TermRepository, "take", POOL, "other", 60.0)
    return term


def test_a_leader_may_renew_late_and_resign_early(ledger: Ledger) -> None:
    ledger.sql("UPDATE scheduler_terms SET expires_at = now()")
    assert ledger.run(TermRepository, "renew", POOL, "leader", 1, 60.0)

    ledger.run(TermRepository, "resign", POOL, "someone else", 1)
    assert ledger.run(TermRepository, "take", POOL, "other", 60.0) is None
    ledger.run(TermRepository, "resign", POOL, "leader", 1)
    assert ledger.run(TermRepository, "take", POOL, "other", 60.0) == 2


def test_a_ledger_has_one_id(ledger: Ledger) -> None:
    assert ledger.run(TermRepository, "ledger_id") == ledger.run(TermRepository, "ledger_id")
    assert ledger.run(TermRepository, "pools") == [POOL]
    with pytest.raises(IntegrityError, match="pk_ledger_id"):
        ledger.sql("INSERT INTO ledger_id DEFAULT VALUES")
