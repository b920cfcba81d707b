"""The relay against a real ledger and a real receiver."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

import workers.webhooks.notices as notices_module
from db import Database
from db.records import DeliveryRow
from db.repositories.jobs import JobRepository
from db.repositories.tenants import TenantRepository
from db.repositories.webhooks import WebhookRepository
from db.secrets import SecretBox, new_key
from lorayard.contract.states import JobState
from lorayard.webhooks import verify
from tests.integration.db.ledger import Ledger, ended
from tests.integration.workers.webhooks.receiver import Receiver, listening
from tests.polling import eventually
from workers.webhooks.addresses import AddressPolicy
from workers.webhooks.lease import LEASE_S, RENEWALS_PER_LEASE
from workers.webhooks.outbox import Outbox
from workers.webhooks.relay import Relay, RelayConfig
from workers.webhooks.sender import Sender

LOOPBACK = (ip_network("127.0.0.0/8"),)
KEY = new_key()
FAST = (0.0, 0.0, 0.0)

FREE_WITHIN_S = 20.0
"""So soon may others send what a killed relay had claimed."""

Running = Callable[..., AbstractContextManager["RelayLife"]]


class RelayLife:
    """How one relay on a thread has fared; `served` says how its run ended, once it has."""

    served: bool | None = None
    outbox: Outbox | None = None


class Hold:
    """Holds a receiver's answers back until they are released."""

    def __init__(self) -> None:
        self.reached, self.release = threading.Event(), threading.Event()

    def __call__(self) -> None:
        """Wait, as `before_answer`."""
        self.reached.set()
        self.release.wait(30)


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    ledger = Ledger(database_url)
    yield ledger
    ledger.database.dispose()


@pytest.fixture
def relay(database_url: str) -> Running:
    @contextmanager
    def running(
        allowed: tuple[object, ...] = LOOPBACK, timeout_s: float = 30.0, **config_fields: Any
    ) -> Iterator[RelayLife]:
        config = RelayConfig(delays_s=FAST, **config_fields)
        loop, stop, life = asyncio.new_event_loop(), asyncio.Event(), RelayLife()

        async def serve() -> None:
            databases = Database(database_url), Database(database_url, pool_size=1)
            async with Sender(AddressPolicy(allowed), timeout_s) as sender:  # type: ignore[arg-type]
                life.outbox = outbox = Outbox(*databases, config.lease_s)
                life.served = await Relay(outbox, sender, SecretBox([KEY]), config).run(stop, lambda: None)
            for database in databases:
                database.dispose()

        def run() -> None:
            loop.run_until_complete(serve())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

        thread = threading.Thread(target=run, name="relay")
        thread.start()
        yield life
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join()

    return running


def secret_of(ledger: Ledger, tenant: str) -> str:
    """Give a tenant a secret and return it in the clear."""
    box = SecretBox([KEY])
    ledger.run(TenantRepository, "ensure", tenant, box.seal_new)
    return box.decrypt(ledger.run(TenantRepository, "webhook_secrets", tenant)[0])


def finish_one(ledger: Ledger, url: str, output: str = "HELLO", tenant: str = "acme") -> None:
    job = ledger.leased(ledger.worker(), callback_url=url, tenant=tenant)
    ledger.finish("w1", ended(job, output=output))


def deliveries(ledger: Ledger) -> list[DeliveryRow]:
    rows: list[DeliveryRow] = ledger.run(WebhookRepository, "recent", 100)
    return rows


def await_state(ledger: Ledger, state: str) -> DeliveryRow:
    eventually(lambda: all(row.state == state for row in deliveries(ledger)), 20.0, f"state {state}")
    return deliveries(ledger)[0]


def test_a_finished_job_arrives_signed(ledger: Ledger, relay: Running) -> None:
    secret = secret_of(ledger, "acme")

    with listening(Receiver()) as receiver:
        finish_one(ledger, receiver.url)
        with relay():
            row = await_state(ledger, "delivered")

    body, headers = receiver.received[0]
    event = verify(body, headers, secret)
    assert (event.type, event.data.output, event.data.state) == ("job.succeeded", "HELLO", JobState.SUCCEEDED)
    assert headers["webhook-id"] == str(row.id)
    assert len(receiver.received) == 1


def test_a_failing_receiver_is_tried_again_under_the_same_id(ledger: Ledger, relay: Running) -> None:
    secret = secret_of(ledger, "acme")

    with listening(Receiver(statuses=[500, 503, 204])) as receiver:
        finish_one(ledger, receiver.url)
        with relay():
            row = await_state(ledger, "delivered")

    assert row.tries == 3
    assert len({headers["webhook-id"] for _, headers in receiver.received}) == 1
    assert all(verify(body, headers, secret) for body, headers in receiver.received)


def test_a_receiver_that_never_accepts_leaves_a_dead_row_with_its_answer(
    ledger: Ledger, relay: Running
) -> None:
    secret_of(ledger, "acme")

    with listening(Receiver(statuses=[500])) as receiver:
        finish_one(ledger, receiver.url)
        with relay():
            row = await_state(ledger, "dead")

    assert row.tries == len(FAST) + 1 == len(receiver.received)
    assert row.status == 500
    assert "HTTP 500" in (row.error or "")


def test_a_dead_webhook_is_delivered_when_replayed(ledger: Ledger, relay: Running) -> None:
    secret_of(ledger, "acme")

    with listening(Receiver(statuses=[410, 204])) as receiver:
        finish_one(ledger, receiver.url)
        with relay():
            assert await_state(ledger, "dead").tries == 1
            assert ledger.run(WebhookRepository, "replay") == 1
            await_state(ledger, "delivered")


def test_a_redirect_is_not_followed(ledger: Ledger, relay: Running) -> None:
    secret_of(ledger, "acme")

    with listening(Receiver()) as elsewhere, listening(Receiver(statuses=[302])) as receiver:
        receiver.headers["location"] = elsewhere.url
        finish_one(ledger, receiver.url)
        with relay():
            row = await_state(ledger, "dead")

    assert row.status == 302
    assert not elsewhere.received


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_a_url_that_leads_inwards_is_dead_with_the_reason(ledger: Ledger, relay: Running, host: str) -> None:
    secret_of(ledger, "acme")

    with listening(Receiver()) as receiver:
        finish_one(ledger, receiver.url.replace("127.0.0.1", host))
        with relay(allowed=()):
            row = await_state(ledger, "dead")

    assert not receiver.received
    assert row.tries == 1
    assert "LORAYARD_WEBHOOK_ALLOW" in (row.error or "")


def test_a_tenant_without_a_secret_has_a_dead_row_that_says_so(ledger: Ledger, relay: Running) -> None:
    ledger.run(TenantRepository, "ensure", "acme", None)

    with listening(Receiver()) as receiver:
        finish_one(ledger, receiver.url)
        with relay():
            row = await_state(ledger, "dead")

    assert not receiver.received
    assert "lorayard webhooks secret acme" in (row.error or "")


def test_a_large_output_is_left_out_and_said_to_be(ledger: Ledger, relay: Running) -> None:
    secret = secret_of(ledger, "acme")

    with listening(Receiver()) as receiver:
        finish_one(ledger, receiver.url, output="x" * 70_000)
        with relay():
            await_state(ledger, "delivered")

    data = verify(*receiver.received[0], secret).data
    assert data.output is None
    assert data.output_omitted


def test_every_final_state_goes_out(ledger: Ledger, relay: Running) -> None:
    secret = secret_of(ledger, "acme")

    with listening(Receiver()) as receiver:
        job_id = ledger.admitted(callback_url=receiver.url, tenant="acme")[0]
        ledger.run(JobRepository, "cancel", job_id)
        with relay():
            await_state(ledger, "delivered")

    assert verify(*receiver.received[0], secret).type == "job.cancelled"


def test_a_dead_host_does_not_hold_up_the_others(ledger: Ledger, relay: Running) -> None:
    secret_of(ledger, "acme")
    for _ in range(30):
        finish_one(ledger, "http://127.0.0.1:9/closed")

    with listening(Receiver()) as receiver:
        finish_one(ledger, receiver.url.replace("127.0.0.1", "localhost"))
        with relay():
            eventually(lambda: receiver.received, 20.0, "the webhook of the living host")


def test_two_relays_deliver_each_webhook_once(ledger: Ledger, relay: Running) -> None:
    secret_of(ledger, "acme")

    with listening(Receiver()) as receiver:
        for _ in range(40):
            finish_one(ledger, receiver.url)
        with relay(), relay():
            await_state(ledger, "delivered")

    ids = [headers["webhook-id"] for _, headers in receiver.received]
    assert len(ids) == len(set(ids)) == 40


def test_a_receiver_slower_than_a_lease_is_called_once_though_every_place_is_taken(
    ledger: Ledger, relay: Running
) -> None:
    secret_of(ledger, "acme")
    hold = Hold()

    with listening(Receiver(before_answer=hold)) as receiver:
        finish_one(ledger, receiver.url)
        finish_one(ledger, receiver.url)
        with relay(concurrency=1, lease_s=8.0):
            assert hold.reached.wait(30)
            leases = "SELECT expires_at FROM webhook_relays ORDER BY expires_at"
            first = ledger.sql(leases)[-1][0]
            with relay(concurrency=1, lease_s=8.0):
                # Both renew, and with that free what belongs to nobody, while one send takes its time.
                eventually(
                    lambda: [at > first for (at,) in ledger.sql(leases)] == [True] * 2, 30.0, "renewals"
                )
                hold.release.set()
                await_state(ledger, "delivered")

    ids = [headers["webhook-id"] for _, headers in receiver.received]
    assert len(ids) == len(set(ids)) == 2
    assert [row.tries for row in deliveries(ledger)] == [1, 1]
    assert ledger.sql("SELECT * FROM webhook_relays") == []


def test_what_waits_for_a_place_is_given_back_uncounted_by_a_relay_that_leaves(
    ledger: Ledger, relay: Running
) -> None:
    secret_of(ledger, "acme")
    hold = Hold()

    with listening(Receiver(before_answer=hold)) as receiver:
        for _ in range(2):
            finish_one(ledger, receiver.url)
        with relay(concurrency=1):
            assert hold.reached.wait(30)
            claimed = "SELECT count(*) FROM webhook_deliveries WHERE relay IS NOT NULL"
            eventually(lambda: ledger.sql(claimed)[0][0] == 2, 30.0, "both claimed")
            threading.Timer(0.5, hold.release.set).start()

    assert sorted((row.state, row.tries) for row in deliveries(ledger)) == [("delivered", 1), ("pending", 0)]
    assert ledger.sql(claimed) == [(0,)]


def test_a_relay_killed_between_send_and_commit_sends_again_under_the_same_id(
    ledger: Ledger, relay: Running, database_url: str, tmp_path: Path
) -> None:
    secret = secret_of(ledger, "acme")
    hold = Hold()

    with listening(Receiver(before_answer=hold)) as receiver:
        finish_one(ledger, receiver.url)
        ready = tmp_path / "ready"
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.webhooks"],
            env=os.environ
            | {
                "LORAYARD_DATABASE_URL": database_url,
                "LORAYARD_SECRET_KEY": KEY,
                "LORAYARD_WEBHOOK_ALLOW": "127.0.0.0/8",
                "LORAYARD_READY_FILE": str(ready),
            },
        )
        assert hold.reached.wait(30)
        assert ready.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        hold.release.set()
        receiver.before_answer = lambda: None
        # What it held comes free when its lease has run out and another relay renews its own.
        assert LEASE_S + LEASE_S / RENEWALS_PER_LEASE <= FREE_WITHIN_S
        ((lease_left,),) = ledger.sql("SELECT expires_at - now() FROM webhook_relays")
        assert lease_left.total_seconds() <= LEASE_S
        ledger.sql("UPDATE webhook_relays SET expires_at = now()")
        with relay():
            row = await_state(ledger, "delivered")

    assert row.tries == 2
    assert len(receiver.received) == 2
    assert {headers["webhook-id"] for _, headers in receiver.received} == {str(row.id)}
    assert all(verify(body, headers, secret) for body, headers in receiver.received)


def test_sigterm_ends_the_relay_cleanly(ledger: Ledger, database_url: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.webhooks"],
        env=os.environ
        | {
            "LORAYARD_DATABASE_URL": database_url,
            "LORAYARD_SECRET_KEY": KEY,
            "LORAYARD_READY_FILE": str(ready),
        },
    )
    eventually(ready.exists, 30.0, "the ready file")

    process.terminate()
    while process.poll() is None:
        process.terminate()  # to its very last moment
        time.sleep(0.01)

    assert process.returncode == 0


def failing(times: float, function: Callable[..., object]) -> Callable[..., object]:
    """Put a failure before a function, so many times."""
    left = times

    def fail_or_call(*arguments: object) -> object:
        nonlocal left
        if left > 0:
            left -= 1
            raise KeyError("told to fail")
        return function(*arguments)

    return fail_or_call


@pytest.mark.parametrize("times", [1, 3])
def test_a_loop_that_fails_begins_anew(
    ledger: Ledger, relay: Running, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(Relay, "claim_and_start", failing(times, Relay.claim_and_start))
    secret_of(ledger, "acme")

    with listening(Receiver()) as receiver, relay() as life:
        finish_one(ledger, receiver.url)
        await_state(ledger, "delivered")

    assert life.served is True


def test_a_loop_that_fails_for_ever_ends_the_relay(
    ledger: Ledger, relay: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Relay, "claim_and_start", failing(float("inf"), Relay.claim_and_start))

    with relay() as life:
        eventually(lambda: life.served is False, 30.0, "the relay's end")


def test_a_delivery_that_the_relay_itself_cannot_make_is_tried_again_like_any(
    ledger: Ledger, relay: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sender, "post", failing(1, Sender.post))
    secret_of(ledger, "acme")

    with listening(Receiver()) as receiver, relay() as life:
        finish_one(ledger, receiver.url)
        row = await_state(ledger, "delivered")

    assert row.tries == 2
    assert life.served is True


def test_an_idle_relay_sleeps_until_a_webhook_is_written(
    ledger: Ledger, relay: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret_of(ledger, "acme")
    monkeypatch.setattr(notices_module, "UNPROMPTED_S", 3600.0)

    with listening(Receiver()) as receiver, relay() as life:
        eventually(lambda: life.outbox is not None and life.outbox.is_empty and life.outbox.notices.hears)
        finish_one(ledger, receiver.url)
        await_state(ledger, "delivered")
        eventually(lambda: life.outbox is not None and life.outbox.is_empty)
        finish_one(ledger, receiver.url)
        await_state(ledger, "delivered")
