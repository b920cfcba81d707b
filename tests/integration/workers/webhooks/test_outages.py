"""The relay outlives its Postgres, and leaves nothing half done when it is told to stop."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from db.migrate import upgrade
from db.repositories.tenants import TenantRepository
from db.repositories.webhooks import WebhookRepository
from db.secrets import SecretBox, new_key
from lorayard.local import SERVERS, Stack, StackConfig
from tests.integration.db.ledger import Ledger, ended
from tests.integration.workers.webhooks.receiver import Receiver, listening
from tests.polling import eventually

KEY = new_key()


@pytest.fixture
def own_stack(new_initialised_dir: Callable[[], Path]) -> Iterator[Stack]:
    """Servers of the test's own, to stop and start."""
    with Stack(StackConfig(state_dir=new_initialised_dir(), parts=SERVERS, durable=False)) as stack:
        upgrade(stack.postgres.url)
        yield stack


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    ledger = Ledger(database_url)
    yield ledger
    ledger.database.dispose()


@contextmanager
def relay_process(url: str, ready: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "LORAYARD_DATABASE_URL": url,
        "LORAYARD_SECRET_KEY": KEY,
        "LORAYARD_WEBHOOK_ALLOW": "127.0.0.0/8",
        "LORAYARD_READY_FILE": str(ready),
    }
    process = subprocess.Popen([sys.executable, "-m", "workers.webhooks"], env=environment)
    try:
        eventually(ready.exists, 30.0, "the relay's ready file")
        yield process
    finally:
        process.kill()
        process.wait()


def finish_one(ledger: Ledger, url: str) -> None:
    ledger.run(TenantRepository, "ensure", "acme", SecretBox([KEY]).seal_new)
    job = ledger.leased(ledger.worker(), callback_url=url, tenant="acme")
    ledger.finish("w1", ended(job))


def num_delivered(ledger: Ledger) -> int:
    counts: dict[str, int] = ledger.run(WebhookRepository, "counts")
    return counts["delivered"]


def test_a_postgres_that_goes_away_during_a_send_loses_nothing(own_stack: Stack, tmp_path: Path) -> None:
    ledger = Ledger(own_stack.postgres.url)
    reached, away = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        away.wait(30)

    with (
        listening(Receiver(before_answer=hold)) as receiver,
        relay_process(own_stack.postgres.url, tmp_path / "ready") as process,
    ):
        finish_one(ledger, receiver.url)
        assert reached.wait(30)
        own_stack.stop_part("postgres")
        away.set()
        own_stack.restart("postgres")
        ledger.database.dispose()  # a connection that was used a moment ago is not tried first

        eventually(lambda: num_delivered(ledger) == 1, 30.0, "the delivery begun before the outage")
        finish_one(ledger, receiver.url)
        eventually(lambda: num_delivered(ledger) == 2, 30.0, "a delivery after the outage")
        assert process.poll() is None

    assert len(receiver.received) == 2
    ledger.database.dispose()


def test_sigterm_lets_a_send_in_flight_finish(ledger: Ledger, database_url: str, tmp_path: Path) -> None:
    reached, release = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        release.wait(30)

    with (
        listening(Receiver(before_answer=hold)) as receiver,
        relay_process(database_url, tmp_path / "ready") as process,
    ):
        finish_one(ledger, receiver.url)
        assert reached.wait(30)
        process.terminate()
        release.set()

        assert process.wait(20) == 0

    assert num_delivered(ledger) == 1
    assert len(receiver.received) == 1
