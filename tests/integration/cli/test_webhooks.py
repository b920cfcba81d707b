"""Secrets and replays of webhooks, on a real ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from standardwebhooks.webhooks import Webhook

from db import Database
from db.repositories.tenants import TenantRepository
from db.repositories.webhooks import WebhookRepository
from tests.integration.cli.conftest import Command
from tests.integration.db.ledger import Ledger, ended


@pytest.fixture
def acme(database: Database) -> None:
    """A tenant that submitted a job once: it is known and has no secret."""
    database.run(lambda connection: TenantRepository(connection).ensure_all(["acme", "umbrella"]))


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    ledger = Ledger(database_url)
    ledger.worker()
    yield ledger
    ledger.database.dispose()


def give_up(ledger: Ledger) -> UUID:
    """End a job whose webhook nobody takes."""
    ledger.finish("w1", ended(ledger.leased(callback_url="https://example.com/hook")))
    delivery = ledger.claim(1)[0]
    ledger.run(WebhookRepository, "dead", delivery.id, delivery.claim, 410, "gone")
    assert isinstance(delivery.id, UUID)
    return delivery.id


@pytest.mark.usefixtures("acme")
def test_the_first_call_makes_a_secret_and_the_next_shows_it(lorayard: Command) -> None:
    first, second = lorayard("webhooks", "secret", "acme"), lorayard("webhooks", "secret", "acme")

    assert first.out == second.out
    assert first.out.startswith("whsec_")
    assert Webhook(first.out.strip())


@pytest.mark.usefixtures("acme")
def test_a_rotation_keeps_two_secrets_until_it_is_ended(lorayard: Command) -> None:
    old = lorayard("webhooks", "secret", "acme").out.split()
    rotating = lorayard("webhooks", "secret", "acme", "--rotate").out.split()
    ended_rotation = lorayard("webhooks", "secret", "acme", "--end-rotation").out.split()

    assert rotating[1:] == old
    assert ended_rotation == rotating[:1] != old


@pytest.mark.usefixtures("acme")
def test_tenants_have_secrets_of_their_own(lorayard: Command) -> None:
    assert lorayard("webhooks", "secret", "acme").out != lorayard("webhooks", "secret", "umbrella").out


@pytest.mark.usefixtures("acme")
def test_without_a_key_for_secrets_the_remedy_is_told(
    lorayard: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAYARD_SECRET_KEY", "")

    ran = lorayard("webhooks", "secret", "acme")

    assert ran.status == 1
    assert "LORAYARD_SECRET_KEY is empty: give a Fernet key" in ran.err


@pytest.mark.usefixtures("acme")
def test_a_secret_of_another_key_is_told_as_such(lorayard: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    lorayard("webhooks", "secret", "acme")
    monkeypatch.setenv("LORAYARD_SECRET_KEY", "A" * 43 + "=")

    assert "encrypted with another key" in lorayard("webhooks", "secret", "acme").err


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("options", [(), ("--rotate",), ("--end-rotation",)])
def test_a_mistyped_tenant_is_refused_with_the_nearest_one(
    lorayard: Command, database: Database, options: tuple[str, ...]
) -> None:
    ran = lorayard("webhooks", "secret", "acmee", *options)

    assert (ran.status, ran.out) == (1, "")
    assert "there is no tenant 'acmee', the nearest is 'acme' of 2 known" in ran.err
    assert [row.name for row in database.run(lambda c: TenantRepository(c).all())] == ["acme", "umbrella"]


def test_a_tenant_is_entered_by_hand_only_if_asked_for(lorayard: Command) -> None:
    assert "there is no tenant 'acme', no name is near it" in lorayard("webhooks", "secret", "acme").err

    entered = lorayard("webhooks", "secret", "acme", "--new")

    assert entered.out.startswith("whsec_")
    assert lorayard("webhooks", "secret", "acme").out == entered.out


def test_what_no_job_can_have_as_its_tenant_is_refused(lorayard: Command) -> None:
    assert "tenant 'a b' is not a valid name" in lorayard("webhooks", "secret", "a b", "--new").err


def test_a_webhook_that_was_given_up_is_listed_and_sent_again(lorayard: Command, ledger: Ledger) -> None:
    delivery_id = give_up(ledger)

    listed = json.loads(lorayard("webhooks", "list", "--json").out)
    assert (listed["id"], listed["status"], listed["error"]) == (str(delivery_id), 410, "gone")

    assert lorayard("webhooks", "replay", str(delivery_id)).out == "1 webhook sent again\n"
    assert lorayard("webhooks", "list").out == "no webhook was given up\n"
    assert ledger.run(WebhookRepository, "counts")["pending"] == 1


def test_all_webhooks_that_were_given_up_are_sent_again(lorayard: Command, ledger: Ledger) -> None:
    give_up(ledger)
    give_up(ledger)

    assert lorayard("webhooks", "replay", "--all").out == "2 webhooks sent again\n"


def test_a_replay_of_what_was_not_given_up_says_so(lorayard: Command, ledger: Ledger) -> None:
    ran = lorayard("webhooks", "replay", str(give_up(ledger)), str(uuid4()))

    assert ran.status == 1
    assert "1 of 2 webhooks sent again, the others were not given up" in ran.err


@pytest.mark.parametrize("arguments", [(), ("--all", str(uuid4()))])
def test_a_replay_needs_ids_or_all(arguments: tuple[str, ...], lorayard: Command) -> None:
    assert lorayard("webhooks", "replay", *arguments).status == 2
