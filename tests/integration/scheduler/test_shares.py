"""Tenants' counters outlive their leader."""

from __future__ import annotations

from functools import partial

import pytest

from db.repositories.jobs import JobRepository
from db.repositories.tenants import TenantRepository
from scheduler.catalogue import Catalogue
from scheduler.fleet import Fleet
from scheduler.instructions import Instructions
from scheduler.item_failures import ItemFailures
from scheduler.leader_context import LeaderContext
from scheduler.policies import PolicyConfig
from scheduler.queue_feed import QueueFeed
from scheduler.shares import Shares
from scheduler.store_failures import StoreFailures
from scheduler.tenancy import Tenancy
from tests.integration.scheduler.pool_rig import PoolRig
from tests.polling import eventually

WINDOW = 100.0


def test_a_lift_is_kept_with_the_admission_and_a_weight_with_the_next_refresh(rig: PoolRig) -> None:
    context = rig.take_office()
    context.transact(lambda c: TenantRepository(c).lift(rig.pool, {"busy": (5_000.0, 1.0)}))
    first = _shares(context)

    context.transact(lambda c: first.arrive(c, {"new", "busy"}))
    first.confirm()
    second = _shares(context)
    rig.database.run(lambda c: TenantRepository(c).ensure("new"))
    rig.database.run(lambda c: TenantRepository(c).set_weight("new", 4.0))
    second.refresh()
    third = _shares(context)

    for shares in (first, second, third):
        assert shares.queue.fairness.changed() == {}
        assert shares.queue.fairness.share("new").counter == 5_000.0 - WINDOW
        assert shares.queue.fairness.share("busy").counter == 5_000.0
    assert third.queue.fairness.share("new").weight == 4.0


def test_a_tenant_without_jobs_is_forgotten_and_comes_back_as_it_was(
    rig: PoolRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.shares.MAX_IDLE", 1)
    with rig.scheduler():
        (queued,) = rig.submit(tenant="waiting")
        eventually(lambda: rig.database.run(lambda c: JobRepository(c).get(queued)) is not None)
    context = rig.take_office()
    standings = {"ahead": (9_000.0, 1.0), "busy": (5_000.0, 1.0)}
    context.transact(lambda c: TenantRepository(c).lift(rig.pool, standings))
    shares = _shares(context)
    fairness = shares.queue.fairness
    fairness.share("waiting")

    shares.refresh()
    known = [tenant for tenant in (*standings, "waiting") if fairness.knows(tenant)]
    context.transact(lambda c: shares.arrive(c, {"ahead", "newcomer"}))

    assert known == ["waiting"]
    assert fairness.share("ahead").counter == 9_000.0
    assert fairness.share("newcomer").counter == 0.0


def test_a_tenant_whose_name_is_no_longer_remembered_is_still_known(
    rig: PoolRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.tenancy.MAX_KNOWN", 2)
    rig.database.run(lambda c: TenantRepository(c).ensure_all("abcd", None))
    tenancy = Tenancy(auto_tenants=False, seal=None)

    for names in ("abcd", "a", "bcd", "stranger"):
        asked = {names, *names}
        admitted = rig.database.run(partial(tenancy.admit, names=asked))
        assert admitted == asked & set("abcd")


def _shares(context: LeaderContext) -> Shares:
    """Take over as a new leader does."""
    policy = PolicyConfig(grouping_window=WINDOW)
    queue = QueueFeed(
        context, Catalogue(context.pool), Instructions(context.pool, lambda: 0.0), lambda: 0.0, policy
    )
    fleet = Fleet(ItemFailures(lambda: 0.0), StoreFailures(), max_model_len=64, overcommit_s=0.5)
    shares = Shares(context, queue, fleet)
    context.transact(lambda connection: shares.restore(connection, []))
    return shares
