"""Tenants are entered once, and their secrets rotate without a gap."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from alembic import command

from db.migrate import alembic_config
from db.records import EVERY_POOL, TenantQuota, TenantServiceRow
from db.repositories.backlog import BacklogRepository
from db.repositories.pauses import PauseRepository
from db.repositories.tenants import TenantRepository
from db.repositories.usage import UsageRepository
from db.secrets import SecretBox, new_key
from tests.integration.db.ledger import POOL, Ledger, ended


def test_ensuring_enters_only_the_missing_each_with_a_secret(ledger: Ledger) -> None:
    box = SecretBox([new_key()])
    ledger.run(TenantRepository, "ensure_all", ["a"], box.seal_new)

    created = ledger.run(TenantRepository, "ensure_all", ["b", "a", "b"], box.seal_new)

    assert created == ["b"]
    assert ledger.run(TenantRepository, "known", ["a", "b", "c"]) == {"a", "b"}
    (ciphertext,) = ledger.run(TenantRepository, "webhook_secrets", "b")
    assert box.decrypt(ciphertext).startswith("whsec_")


def test_a_tenant_entered_without_a_secret_gets_its_first_later(ledger: Ledger) -> None:
    assert not ledger.run(TenantRepository, "ensure", "a").has_secret

    assert ledger.run(TenantRepository, "ensure", "a", lambda: b"first").has_secret
    ledger.run(TenantRepository, "ensure", "a", lambda: b"second")

    assert ledger.run(TenantRepository, "webhook_secrets", "a") == (b"first",)


def test_ensuring_at_once_keeps_one_secret(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: ledger.run(TenantRepository, "ensure", "a", lambda: b"%d" % n), range(16)))

    assert len(ledger.run(TenantRepository, "webhook_secrets", "a")) == 1
    assert [row.name for row in ledger.run(TenantRepository, "all")] == ["a"]


def test_while_a_secret_rotates_both_are_valid(ledger: Ledger) -> None:
    ledger.run(TenantRepository, "ensure", "a", lambda: b"old")

    assert ledger.run(TenantRepository, "set_webhook_secret", "a", b"new")
    assert ledger.run(TenantRepository, "webhook_secrets", "a") == (b"new", b"old")
    assert ledger.run(TenantRepository, "get", "a").rotating
    assert ledger.run(TenantRepository, "drop_previous_secret", "a")
    assert ledger.run(TenantRepository, "webhook_secrets", "a") == (b"new",)
    assert not ledger.run(TenantRepository, "drop_previous_secret", "a")


def test_an_unknown_tenant_has_nothing_and_cannot_be_changed(ledger: Ledger) -> None:
    assert ledger.run(TenantRepository, "get", "nobody") is None
    assert ledger.run(TenantRepository, "webhook_secrets", "nobody") == ()
    assert not ledger.run(TenantRepository, "set_webhook_secret", "nobody", b"x")
    assert not ledger.run(TenantRepository, "set_weight", "nobody", 2.0)


def test_a_tenants_weight_can_be_set(ledger: Ledger) -> None:
    assert ledger.run(TenantRepository, "ensure", "a").weight == 1.0

    assert ledger.run(TenantRepository, "set_weight", "a", 2.5)
    assert ledger.run(TenantRepository, "get", "a").weight == 2.5
    assert ledger.run(TenantRepository, "weights") == {"a": 2.5}


def test_what_tenants_were_served_is_the_same_before_and_after_folding_and_lifts_stay(ledger: Ledger) -> None:
    ledger.worker()
    for tenant, number in (("a", 3), ("b", 1)):
        for job in ledger.lease("w1", *ledger.admitted(number, tenant=tenant, adapter="sql")):
            ledger.finish("w1", ended(job))
    ledger.run(TenantRepository, "lift", POOL, {"b": (40.0, 2.0), "c": (7.0, 1.0)})

    before = ledger.run(TenantRepository, "service", POOL)
    ledger.run(UsageRepository, "fold")
    ledger.run(TenantRepository, "lift", POOL, {"c": (9.0, 1.0)})

    assert before == [
        TenantServiceRow("a", 9, 15, 0.0, 1.0),
        TenantServiceRow("b", 3, 5, 40.0, 2.0),
        TenantServiceRow("c", 0, 0, 7.0, 1.0),
    ]
    assert ledger.run(TenantRepository, "service", POOL) == [
        *before[:2],
        TenantServiceRow("c", 0, 0, 9.0, 1.0),
    ]
    assert ledger.run(TenantRepository, "service", "elsewhere") == []


def test_who_was_served_what_is_forgotten_by_a_downgrade_and_usage_stays(ledger: Ledger) -> None:
    ledger.worker()
    for job in ledger.lease("w1", *ledger.admitted(2, tenant="a")):
        ledger.finish("w1", ended(job))
    ledger.run(UsageRepository, "fold")

    with ledger.database.transaction() as connection:
        command.downgrade(alembic_config(connection), "0015")
        command.upgrade(alembic_config(connection), "head")

    assert ledger.run(TenantRepository, "service", POOL) == []
    assert ledger.sql("SELECT tenant, jobs FROM adapter_usage") == [("a", 2)]


def test_a_quota_is_kept_until_it_limits_nothing(ledger: Ledger) -> None:
    ledger.run(TenantRepository, "set_quota", TenantQuota("a", 5, 2.5))
    ledger.run(TenantRepository, "set_quota", TenantQuota("b", None, 1.0))
    ledger.run(TenantRepository, "set_quota", TenantQuota("a", 0))
    assert ledger.run(TenantRepository, "quotas") == [TenantQuota("a", 0), TenantQuota("b", None, 1.0)]

    ledger.run(TenantRepository, "set_quota", TenantQuota("a"))
    assert ledger.run(TenantRepository, "quotas") == [TenantQuota("b", None, 1.0)]


def test_a_leader_is_told_of_pauses_in_its_pool_and_of_tenants_everywhere(ledger: Ledger) -> None:
    for kind, pool, name in (
        ("pool", POOL, POOL),
        ("pool", "another", "another"),
        ("tenant", EVERY_POOL, "a"),
        ("adapter", POOL, "x"),
    ):
        assert ledger.run(PauseRepository, "pause", kind, pool, name)
    assert not ledger.run(PauseRepository, "pause", "adapter", POOL, "x")

    told = {(row.kind, row.name) for row in ledger.run(PauseRepository, "of_pool", POOL)}
    assert told == {("pool", POOL), ("tenant", "a"), ("adapter", "x")}
    assert ledger.run(PauseRepository, "resume", "adapter", POOL, "x")
    assert not ledger.run(PauseRepository, "resume", "adapter", POOL, "x")
    assert len(ledger.run(PauseRepository, "all")) == 3


def test_queued_jobs_are_counted_by_tenant(ledger: Ledger) -> None:
    ledger.worker()
    ledger.leased(tenant="a")
    ledger.admitted(2, tenant="a")
    ledger.admitted(1, tenant="b")

    assert ledger.run(BacklogRepository, "queued_of", POOL, ["a", "c"]) == {"a": 2}
    groups = ledger.run(BacklogRepository, "groups")
    assert [(one.pool, one.tenant, one.queued, one.leased) for one in groups] == [
        (POOL, "a", 2, 1),
        (POOL, "b", 1, 0),
    ]
