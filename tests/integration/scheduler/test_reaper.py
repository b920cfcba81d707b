"""An idle leader goes its round through the ledger only if there is something new, or none was for long."""

from __future__ import annotations

from typing import Any, cast

import pytest

from db.repositories.pauses import PauseRepository
from scheduler.catalogue import Catalogue
from scheduler.quarantine import Quarantine
from scheduler.reaper import UNPROMPTED_S, Reaper
from scheduler.store_failures import StoreFailures
from tests.integration.scheduler.pool_rig import PoolRig


def test_an_idle_leader_looks_before_it_goes_its_round(rig: PoolRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[bool] = []
    monkeypatch.setattr(Reaper, "_go", lambda _self, *, is_idle: rounds.append(is_idle))
    context, absent = rig.take_office(), cast("Any", None)
    catalogue = Catalogue(rig.pool)
    quarantine = Quarantine(context, catalogue, absent, StoreFailures(30.0), absent, lambda: 0.0)
    reaper = Reaper(context, catalogue, absent, absent, absent, quarantine, absent, may_reap=lambda: True)

    def goes(now: float, *, is_idle: bool = True) -> bool:
        before = len(rounds)
        reaper.reap(now, is_idle=is_idle)
        return len(rounds) > before

    assert goes(0.0)
    assert not goes(1.0)
    rig.database.run(lambda c: PauseRepository(c).pause("adapter", rig.pool, "sql"))
    assert goes(2.0)
    assert not goes(3.0)
    assert goes(UNPROMPTED_S)
    assert not goes(UNPROMPTED_S + 1.0)
    assert goes(UNPROMPTED_S + 1.1, is_idle=False)
    assert goes(UNPROMPTED_S + 1.2)  # what the busy leader has read said nothing of quotas and pauses
