"""Tenants' counters outlive their leader."""

from __future__ import annotations

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
from tests.integration.scheduler.pool_rig import PoolRig

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
