"""A webhook is in one relay's hand at a time, and ends accepted or dead."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from db.records import Delivery
from db.repositories.jobs import JobRepository
from db.repositories.webhooks import WebhookRepository
from lorayard.contract.states import JobState
from tests.integration.db.ledger import Ledger, ended


def claim(ledger: Ledger, limit: int = 10, lease_s: float = 60.0, **named: Any) -> list[Delivery]:
    claimed: list[Delivery] = ledger.run(WebhookRepository, "claim", limit, lease_s, **named)
    return claimed


def outbox(ledger: Ledger, number: int = 1, host: str = "example.com") -> None:
    """Fill the outbox by cancelling queued jobs."""
    for job_id in ledger.admitted(number, callback_url=f"https://{host}/hook"):
        ledger.run(JobRepository, "cancel", job_id)


def make_due(ledger: Ledger) -> None:
    ledger.sql("UPDATE webhook_deliveries SET next_at = now()")


def test_a_claim_carries_the_result_as_it_is_now(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker(), callback_url="https://example.com/hook", tenant="acme")
    ledger.finish("w1", ended(job, output="text"))

    delivery = claim(ledger)[0]

    assert delivery.result == ledger.get(job.job_id)
    assert delivery.result.output == "text"
    assert (delivery.event_type, delivery.tenant, delivery.host) == ("job.succeeded", "acme", "example.com")
    assert (delivery.claim, delivery.tries) == (1, 1)
    assert delivery.ended_at.utcoffset() is not None


def test_two_relays_never_hold_the_same_webhook(ledger: Ledger) -> None:
    outbox(ledger, 40)

    with ThreadPoolExecutor(4) as threads:
        claimed = [entry.id for share in threads.map(lambda _: claim(ledger, 7), range(8)) for entry in share]
    # Claims at the same instant may leave rows to the next one, but never share any.
    claimed += [entry.id for entry in claim(ledger, 40)]

    assert len(claimed) == len(set(claimed)) == 40


def test_a_claim_that_ran_out_is_taken_over_and_its_first_holder_fenced(ledger: Ledger) -> None:
    outbox(ledger)
    first = claim(ledger)[0]
    assert claim(ledger) == []
    make_due(ledger)
    second = claim(ledger)[0]

    assert second.id == first.id
    assert second.tries == 2
    assert not ledger.run(WebhookRepository, "delivered", first.id, first.claim, 200)
    assert not ledger.run(WebhookRepository, "dead", first.id, first.claim, None, "late")
    assert ledger.run(WebhookRepository, "delivered", second.id, second.claim, 204)
    assert ledger.run(WebhookRepository, "counts") == {"pending": 0, "delivered": 1, "dead": 0}


def test_a_retry_waits_and_says_why(ledger: Ledger) -> None:
    outbox(ledger)
    first = claim(ledger)[0]
    assert ledger.run(WebhookRepository, "retry", first.id, first.claim, 60.0, 500, "HTTP 500")

    assert claim(ledger) == []
    row = ledger.run(WebhookRepository, "recent")[0]
    assert (row.state, row.status, row.error, row.tries) == ("pending", 500, "HTTP 500", 1)
    make_due(ledger)
    assert claim(ledger)[0].tries == 2


def test_a_claim_given_back_is_not_counted(ledger: Ledger) -> None:
    outbox(ledger)
    first = claim(ledger)[0]

    assert ledger.run(WebhookRepository, "release", first.id, first.claim)
    assert not ledger.run(WebhookRepository, "release", first.id, first.claim)

    assert claim(ledger)[0].tries == 1


def test_a_dead_webhook_is_sent_again_only_by_replay(ledger: Ledger) -> None:
    outbox(ledger, 2)
    for delivery in claim(ledger):
        ledger.run(WebhookRepository, "dead", delivery.id, delivery.claim, 410, "gone")
    make_due(ledger)
    assert claim(ledger) == []
    dead = ledger.run(WebhookRepository, "recent", state="dead")

    assert ledger.run(WebhookRepository, "replay", [dead[0].id]) == 1
    replayed = claim(ledger)
    assert [(entry.id, entry.tries) for entry in replayed] == [(dead[0].id, 1)]
    assert replayed[0].claim > 1
    assert ledger.run(WebhookRepository, "replay") == 1
    assert ledger.run(WebhookRepository, "replay") == 0


def test_one_busy_host_does_not_hold_back_the_others(ledger: Ledger) -> None:
    outbox(ledger, 30, "busy.example")
    outbox(ledger, 2, "quiet.example")

    claimed = claim(ledger, 6, per_host=4)

    assert sorted(entry.host for entry in claimed) == ["busy.example"] * 4 + ["quiet.example"] * 2
    assert claim(ledger, exclude_hosts=["busy.example"]) == []


def test_jobs_without_a_callback_have_no_webhook(ledger: Ledger) -> None:
    job = ledger.leased(ledger.worker())
    ledger.finish("w1", ended(job))

    assert ledger.state(job.job_id) == JobState.SUCCEEDED
    assert claim(ledger) == []
