"""An idle leader knows from a few words whether a round through the ledger would find anything."""

from __future__ import annotations

from db.repositories.jobs import JobRepository
from db.repositories.leases import LEADERS_PICTURE, LeaseRepository
from db.repositories.terms import TermRepository
from db.repositories.workers import WorkerRepository
from tests.integration.db.ledger import POOL, Ledger


def test_the_picture_changes_with_all_that_a_round_reads_and_with_nothing_else(
    ledger: Ledger,
) -> None:
    ledger.worker("w1")
    ledger.worker("w2")
    seen = [ledger.database.look(LEADERS_PICTURE, pool=POOL)]

    def look() -> bool:
        seen.append(ledger.database.look(LEADERS_PICTURE, pool=POOL))
        return seen[-1] is not None and seen[-1] not in seen[:-1]

    ledger.run(WorkerRepository, "renew", "w1", 60.0)
    ledger.run(TermRepository, "renew", POOL, "leader", ledger.term, 60.0)
    ledger.admitted(deadline_s=3600.0)
    assert not look()
    for change in (
        "UPDATE scheduler_terms SET term = term + 1",
        f"INSERT INTO catalogues (pool, version) VALUES ('{POOL}', 7)",
        f"INSERT INTO pauses (kind, pool, name) VALUES ('adapter', '{POOL}', 'sql')",
        "INSERT INTO pauses (kind, pool, name) VALUES ('tenant', '*', 'acme')",
        "INSERT INTO tenant_quotas (tenant, max_queued_jobs) VALUES ('acme', 5)",
        "UPDATE tenant_quotas SET max_queued_jobs = 6",
        "UPDATE workers SET state = 'draining' WHERE incarnation = 'w1'",
        "UPDATE workers SET state = 'unhealthy' WHERE incarnation = 'w1'",
        f"INSERT INTO worker_hosts VALUES ('{POOL}', 'host-w2', '{{}}', 0, false)",
        "UPDATE worker_hosts SET in_a_row = 1",
    ):
        ledger.sql(change)
        assert look(), change
    ledger.worker("w3")
    assert look()


def test_the_leader_has_no_picture_while_a_round_would_find_something_to_do(ledger: Ledger) -> None:
    def is_there() -> bool:
        return ledger.database.look(LEADERS_PICTURE, pool=POOL) is not None

    ledger.worker("w1")
    (job_id,) = ledger.admitted(deadline_s=3600.0)
    assert is_there()
    ledger.sql("UPDATE jobs SET deadline_at = now() WHERE job_id = :id", id=job_id)
    assert not is_there()
    ledger.run(JobRepository, "expire_due", POOL, 10)
    assert is_there()
    ledger.expire_lease("w1")
    assert not is_there()
    ledger.run(LeaseRepository, "lose_worker", "w1")
    assert is_there()
    ledger.worker("w2")
    ledger.run(WorkerRepository, "say_end", "w2", "engine_died")
    ledger.run(WorkerRepository, "set_state", "w2", "gone")
    assert not is_there()
