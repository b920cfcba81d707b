"""Hints from outside: what to load ahead, to keep, to give up first; and loads that nobody waits for now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.polling import eventually
from tests.unit.workers.engine.lora.manager_fixtures import acquired, new_manager, request_of, stuck_request
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.residency.manager import LoRAManager


@pytest.fixture
def requests(tmp_path: Path) -> dict[int, LoRARequest]:
    return {number: request_of(tmp_path, number) for number in range(1, 7)}


@pytest.fixture
def manager() -> Iterator[LoRAManager]:
    manager = new_manager(max_loras=2, max_cpu_loras=3)
    yield manager
    manager.close()


def _settled(manager: LoRAManager) -> set[int]:
    """Return the ids on the host once nothing is being loaded."""
    eventually(lambda: manager.stats().num_loading == 0, what="the end of all loads")
    return manager.list()


def test_what_is_wanted_is_loaded_ahead_in_order_as_far_as_there_is_room(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    manager.plan([requests[number] for number in (4, 2, 6, 1, 3)])

    assert _settled(manager) == {4, 2, 6}
    assert [change.revision for change in manager.drain_changes()] == [
        requests[number].revision for number in (4, 2, 6)
    ]
    assert set(manager.residency().values()) == {"host"}


def test_a_request_goes_before_hints_and_takes_the_place_that_is_needed_last(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    manager.plan([requests[number] for number in (1, 2, 3)])
    _settled(manager)
    for number in (2, 3):  # so that 1 is the least recently used
        acquired(manager, requests[number])
        manager.release(requests[number])

    acquired(manager, requests[5])

    assert manager.list() == {1, 2, 5}


def test_what_is_to_be_dropped_leaves_first_and_what_runs_or_is_pinned_stays(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    for number in (1, 2, 3):
        manager.add(requests[number])
    manager.pin(1)
    acquired(manager, requests[2])

    manager.plan([], drop=[requests[1], requests[2], str(requests[3].revision)])
    manager.add(requests[4])

    assert manager.list() == {1, 2, 4}
    assert manager.residency()[str(requests[1].revision)] == "device"


def test_a_bad_adapter_in_a_plan_is_left_out(
    manager: LoRAManager, requests: dict[int, LoRARequest], tmp_path: Path
) -> None:
    manager.plan([LoRARequest("gone", 9, str(tmp_path / "gone")), requests[1], "sha256:unknown"])

    assert _settled(manager) == {1}
    assert manager.stats().failures == 1


def test_a_load_nobody_waits_for_is_cancelled_unless_it_is_under_way_or_hinted_at(
    tmp_path: Path, requests: dict[int, LoRARequest]
) -> None:
    manager = new_manager(max_loras=2, max_cpu_loras=6)
    stuck = stuck_request(tmp_path)
    for request in (stuck, requests[1], requests[2], requests[3]):
        manager.prefetch(request)
    manager.plan([requests[3]])

    assert not manager.cancel_load(stuck)
    assert manager.cancel_load(requests[2])
    assert not manager.cancel_load(requests[2])
    assert not manager.cancel_load(requests[3])
    assert not manager.is_loading(requests[2])
    manager.close()


def test_a_request_hurries_the_load_that_a_hint_began(tmp_path: Path) -> None:
    manager = new_manager(max_loras=2, max_cpu_loras=6)
    stuck, loader = stuck_request(tmp_path), manager._loads._loader

    manager.plan([stuck])
    manager.collect()
    begun_ahead = set(loader._ahead)
    manager.prefetch(stuck)

    assert (begun_ahead, loader._ahead) == ({stuck}, set())
    manager.close()


def test_no_more_loads_are_queued_than_allowed_and_the_others_wait_outside(
    tmp_path: Path, requests: dict[int, LoRARequest]
) -> None:
    manager = new_manager(max_loras=2, max_cpu_loras=6, max_queued_lora_loads=2)

    for number in (1, 2, 3):
        assert manager.acquire(requests[number]) is None
    assert manager.stats().num_loading == 2

    for number in (1, 2):
        acquired(manager, requests[number])
        manager.release(requests[number])
    acquired(manager, requests[3])
    manager.close()
