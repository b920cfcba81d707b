"""A webhook is in one relay's hand at a time, and ends accepted or dead."""

from __future__ import annotations

import select
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from db import Database
from db.errors import DatabaseUnavailable
from db.repositories.endings import WEBHOOKS_CHANNEL
from db.repositories.jobs import JobRepository
from db.repositories.webhooks import HAS_UNCLAIMED, WebhookRepository
from lorayard.contract.states import JobState
from tests.integration.db.ledger import RELAY, Ledger, ended
from tests.polling import eventually


def outbox(ledger: Ledger, number: int = 1, host: str = "example.com", tenant: str = "acme") -> None:
    """Fill the outbox by cancelling queued jobs."""
    for job_id in ledger.admitted(number, callback_url=f"https://{host}/hook", tenant=tenant):
        ledger.run(JobRepository, "cancel", job_id)


def end_lease(ledger: Ledger, relay: UUID = RELAY) -> None:
    """Let the time of a relay that was killed run out."""
    ledger.sql("UPDATE webhook_relays SET expires_at = now() WHERE incarnation = :relay", relay=relay)


def make_due(ledger: Ledger) -> None:
    ledger.sql("UPDATE webhook_deliveries SET next_at = now()")


def test_a_claim_carries_the_result_as_it_is_now(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker(), callback_url="https://example.com/hook", tenant="acme")
    ledger.finish("w1", ended(job, output="text"))

    delivery = ledger.claim()[0]

    assert delivery.result == ledger.get(job.job_id)
    assert delivery.result.output == "text"
    assert (delivery.event_type, delivery.tenant, delivery.host) == ("job.succeeded", "acme", "example.com")
    assert (delivery.claim, delivery.tries) == (1, 1)
    assert delivery.ended_at.utcoffset() is not None


def test_two_relays_never_hold_the_same_webhook(ledger: Ledger) -> None:
    outbox(ledger, 40)

    with ThreadPoolExecutor(4) as threads:
        claimed = [entry.id for share in threads.map(lambda _: ledger.claim(7), range(8)) for entry in share]
    # Claims at the same instant may leave rows to the next one, but never share any.
    claimed += [entry.id for entry in ledger.claim(40)]

    assert len(claimed) == len(set(claimed)) == 40


def test_a_claim_of_a_relay_that_is_gone_is_taken_over_and_its_first_holder_fenced(ledger: Ledger) -> None:
    outbox(ledger)
    first = ledger.claim()[0]
    assert ledger.claim() == []
    end_lease(ledger)
    second = ledger.claim(relay=uuid4())[0]

    assert second.id == first.id
    assert second.tries == 2
    assert not ledger.run(WebhookRepository, "delivered", first.id, first.claim, 200)
    assert not ledger.run(WebhookRepository, "dead", first.id, first.claim, None, "late")
    assert ledger.run(WebhookRepository, "delivered", second.id, second.claim, 204)
    assert ledger.run(WebhookRepository, "counts") == {"pending": 0, "delivered": 1, "dead": 0}


def test_a_retry_waits_and_says_why(ledger: Ledger) -> None:
    outbox(ledger)
    first = ledger.claim()[0]
    assert ledger.run(WebhookRepository, "retry", first.id, first.claim, 60.0, 500, "HTTP 500")

    assert ledger.claim() == []
    row = ledger.run(WebhookRepository, "recent")[0]
    assert (row.state, row.status, row.error, row.tries) == ("pending", 500, "HTTP 500", 1)
    make_due(ledger)
    assert ledger.claim()[0].tries == 2


def test_a_claim_given_back_is_not_counted(ledger: Ledger) -> None:
    outbox(ledger)
    first = ledger.claim()[0]

    assert ledger.run(WebhookRepository, "release", [(first.id, first.claim, 0.0)]) == {first.id}
    assert ledger.run(WebhookRepository, "release", [(first.id, first.claim, 0.0)]) == set()

    assert ledger.claim()[0].tries == 1


def test_a_living_relay_keeps_its_claims_however_long_they_take(ledger: Ledger) -> None:
    outbox(ledger)
    claimed = ledger.claim()[0]
    make_due(ledger)

    for _ in range(3):
        assert ledger.claim(relay=uuid4()) == []

    assert ledger.run(WebhookRepository, "delivered", claimed.id, claimed.claim, 200)


def test_a_relay_without_a_lease_claims_nothing(ledger: Ledger) -> None:
    outbox(ledger)
    stranger = uuid4()

    assert ledger.run(WebhookRepository, "claim", stranger, 10, ["acme"]) == []
    ledger.run(WebhookRepository, "renew", stranger, 60.0)
    end_lease(ledger, stranger)
    assert ledger.run(WebhookRepository, "claim", stranger, 10, ["acme"]) == []


def test_a_relay_that_leaves_leaves_its_claims(ledger: Ledger) -> None:
    outbox(ledger)
    ledger.claim()

    ledger.run(WebhookRepository, "retire", RELAY)

    assert len(ledger.claim(relay=uuid4())) == 1


def test_what_a_relay_holds_without_knowing_is_freed_and_the_rest_is_not(ledger: Ledger) -> None:
    outbox(ledger, 3)
    known, *_ = ledger.claim()

    assert ledger.run(WebhookRepository, "free_unheld", RELAY, [known.id]) == 2

    assert known.id not in {entry.id for entry in ledger.claim()}
    assert ledger.run(WebhookRepository, "delivered", known.id, known.claim, 200)


def test_tenants_are_claimed_for_in_turn_however_much_one_has(ledger: Ledger) -> None:
    outbox(ledger, 40, tenant="a-busy")
    for tenant in ("b", "c"):
        outbox(ledger, 1, tenant=tenant)

    first = ledger.claim(6)
    assert sorted(entry.tenant for entry in first) == ["a-busy"] * 4 + ["b", "c"]
    assert ledger.run(WebhookRepository, "tenants") == (["a-busy"], "")
    assert ledger.run(WebhookRepository, "tenants", "a-busy") == ([], "")


def test_a_host_of_many_tenants_leaves_places_to_the_others(ledger: Ledger) -> None:
    for number in range(30):
        outbox(ledger, 3, "busy.example", tenant=f"busy-{number}")
    outbox(ledger, 1, "quiet.example", tenant="quiet")

    claimed = ledger.claim(8, per_host=4, per_tenant_and_host=1)

    assert sorted(entry.host for entry in claimed) == ["busy.example"] * 4 + ["quiet.example"]
    assert len({entry.tenant for entry in claimed}) == 5


def test_a_turn_of_tenants_goes_on_where_it_stopped(ledger: Ledger) -> None:
    for tenant in "dbca":
        outbox(ledger, 2, tenant=tenant)
    for delivery in ledger.claim(tenants=["b"]):
        ledger.run(WebhookRepository, "retry", delivery.id, delivery.claim, 60.0, 500, "later")

    assert ledger.run(WebhookRepository, "tenants", "", 3) == (["a", "c"], "c")
    assert ledger.run(WebhookRepository, "tenants", "c", 3) == (["d"], "")


def test_a_dead_webhook_is_sent_again_only_by_replay(ledger: Ledger) -> None:
    outbox(ledger, 2)
    for delivery in ledger.claim():
        ledger.run(WebhookRepository, "dead", delivery.id, delivery.claim, 410, "gone")
    make_due(ledger)
    assert ledger.claim() == []
    dead = ledger.run(WebhookRepository, "recent", state="dead")

    assert ledger.run(WebhookRepository, "replay", [dead[0].id]) == 1
    replayed = ledger.claim()
    assert [(entry.id, entry.tries) for entry in replayed] == [(dead[0].id, 1)]
    assert replayed[0].claim > 1
    assert ledger.run(WebhookRepository, "replay") == 1
    assert ledger.run(WebhookRepository, "replay") == 0


def test_one_busy_host_does_not_hold_back_the_others(ledger: Ledger) -> None:
    outbox(ledger, 30, "busy.example")
    outbox(ledger, 2, "quiet.example")

    claimed = ledger.claim(6, per_tenant_and_host=4)

    assert sorted(entry.host for entry in claimed) == ["busy.example"] * 4 + ["quiet.example"] * 2
    assert ledger.claim(exclude_hosts=["busy.example"]) == []


def test_jobs_without_a_callback_have_no_webhook(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker())
    ledger.finish("w1", ended(job))

    assert ledger.state(job.job_id) == JobState.SUCCEEDED
    assert ledger.claim() == []


def test_a_look_tells_whether_any_webhook_waits_and_does_not_wait_for_a_lock(
    ledger: Ledger, database_url: str
) -> None:
    database = Database(database_url, lock_timeout_ms=50)
    before = database.look(HAS_UNCLAIMED)
    outbox(ledger)
    waiting = database.look(HAS_UNCLAIMED)
    ledger.claim()

    with ledger.database.transaction() as other:
        other.execute(text("LOCK TABLE webhook_deliveries"))
        with pytest.raises(DBAPIError, match="LockNotAvailable"):
            database.look(HAS_UNCLAIMED)

    assert (before, waiting, database.look(HAS_UNCLAIMED)) == (False, True, False)
    database.dispose()


def test_whoever_listens_is_told_of_webhooks_once_they_are_committed(ledger: Ledger) -> None:
    listener = ledger.database.listen(WEBHOOKS_CHANNEL)
    assert listener is not None

    def is_told() -> bool:
        return bool(select.select([listener], [], [], 0.0)[0]) and listener.take() > 0

    ledger.finish("w1", ended(ledger.leased(ledger.worker())))
    with ledger.database.transaction() as connection:
        connection.execute(text("SELECT pg_notify('another', '')"))
    ledger.run(WebhookRepository, "replay")
    assert not is_told()
    ledger.finish("w1", ended(ledger.leased(callback_url="https://example.test/hook")))
    eventually(is_told)
    ledger.sql("UPDATE webhook_deliveries SET state = 'dead', ended_at = now()")
    ledger.run(WebhookRepository, "replay")
    eventually(is_told)

    ledger.sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE query = :query",
        query=f"LISTEN {WEBHOOKS_CHANNEL}",
    )
    with pytest.raises(DatabaseUnavailable, match="a session that listened is lost"):
        eventually(is_told)
    listener.close()


def test_nobody_listens_through_a_pooler(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        psycopg.ConnectionInfo, "backend_pid", property(lambda _: 1)
    )  # one of the pooler's own

    assert ledger.database.listen(WEBHOOKS_CHANNEL) is None
