"""add, remove, pin, unpin and list, as users of other multi-LoRA engines know them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.workers.engine.lora.manager_fixtures import acquired, new_manager, request_of
from workers.engine.core.errors import AdapterError, AdapterInUse, AdapterNotFound, AllSlotsPinned
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


def _on_device(manager: LoRAManager, requests: dict[int, LoRARequest]) -> dict[int, int]:
    """Return slot by adapter id, read from the tables that the kernels read."""
    entries = [manager.packed(0, "qkv").weights(slot) for slot in range(2)]
    tiers = manager.residency()
    held = {number for number, request in requests.items() if tiers.get(str(request.revision)) == "device"}
    assert sum(entry is not None for entry in entries) == len(held)
    return {number: manager._tiers.slots.slot_of(str(requests[number].revision)) for number in held}  # type: ignore[misc]


def test_behaviour_15_slots_follow_the_sequence_of_lowest_free_lru_and_pins(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    assert manager.add(requests[1]) is True
    assert manager.add(requests[2]) is True
    assert manager.add(requests[2]) is False
    assert _on_device(manager, requests) == {1: 0, 2: 1}

    assert manager.add(requests[3]) is True
    assert _on_device(manager, requests) == {3: 0, 2: 1}
    assert manager.list() == {1, 2, 3}

    assert manager.remove(2) is True
    assert manager.remove(2) is False
    assert _on_device(manager, requests) == {3: 0}
    assert manager.add(requests[4]) is True
    assert _on_device(manager, requests) == {3: 0, 4: 1}
    assert manager.list() == {1, 3, 4}

    assert manager.pin(3) is True
    assert manager.add(requests[5]) is True
    assert _on_device(manager, requests) == {3: 0, 5: 1}
    assert manager.list() == {3, 4, 5}

    assert manager.pin(4) is True
    assert _on_device(manager, requests) == {3: 0, 4: 1}
    with pytest.raises(RuntimeError, match="all 2 hold pinned adapters"):
        manager.add(requests[6])
    with pytest.raises(RuntimeError, match="all 2 hold pinned adapters"):
        manager.pin(6)

    assert manager.unpin(3) is True
    assert manager.unpin(3) is False
    assert manager.pin(6) is True
    assert _on_device(manager, requests) == {6: 0, 4: 1}


def test_touching_by_add_changes_who_leaves_next(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    manager.add(requests[1])
    manager.add(requests[2])
    manager.add(requests[1])

    manager.add(requests[3])

    assert _on_device(manager, requests) == {1: 0, 3: 1}


def test_behaviour_15_pinning_an_unknown_adapter_is_a_value_error(manager: LoRAManager) -> None:
    with pytest.raises(ValueError, match="adapter id 7 is not loaded; add it before pinning it"):
        manager.pin(7)
    assert manager.unpin(7) is False
    assert manager.remove(7) is False


def test_a_pinned_adapter_survives_any_traffic_and_may_be_removed(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    manager.add(requests[1])
    manager.pin(1)
    for number in (2, 3, 4, 5, 6):
        acquired(manager, requests[number])
        manager.release(requests[number])
    assert _on_device(manager, requests) == {1: 0, 6: 1}

    assert manager.remove(1) is True

    assert _on_device(manager, requests) == {6: 1}
    manager.add(requests[1])
    manager.add(requests[2])
    assert 1 in manager.list()
    assert not manager.unpin(1), "a removed adapter comes back unpinned"


def test_a_pin_ends_with_its_id_though_other_ids_stand_for_the_adapter(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    twin = replace(requests[1], lora_int_id=11)
    manager.add(requests[1])
    manager.add(twin)
    manager.pin(1)

    assert not manager.unpin(11), "another id's pin"
    assert manager.remove(1) is True

    assert _on_device(manager, requests) == {1: 0}, "it stays for the other id"
    for number in (2, 3):
        acquired(manager, requests[number])
        manager.release(requests[number])
    assert _on_device(manager, requests) == {2: 1, 3: 0}


def test_a_pin_follows_an_id_that_requests_use_for_another_adapter(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    manager.add(requests[1])
    manager.pin(1)

    again = replace(requests[2], lora_int_id=1)
    acquired(manager, again)
    manager.release(again)
    for number in (3, 4, 5):
        acquired(manager, requests[number])
        manager.release(requests[number])

    assert _on_device(manager, requests) == {2: 1, 5: 0}
    assert manager.unpin(1)


def test_behaviour_20_removing_one_that_runs_is_refused_until_it_ends(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    acquired(manager, requests[1])

    with pytest.raises(AdapterInUse, match=r"adapter id 1 .* is used by 1 running sequences; remove it when"):
        manager.remove(1)

    manager.release(requests[1])
    assert manager.remove(1) is True
    assert manager.residency() == {}
    stats = manager.stats()
    assert (stats.num_on_device, stats.num_on_host, stats.host_bytes) == (0, 0, 0)
    assert not manager.packed(0, "qkv").table.any()
    assert manager.remove(1) is False
    with pytest.raises(ValueError, match="adapter id 1 is not loaded"):
        manager.pin(1)


def test_behaviour_21_removed_and_added_again_there_is_one_copy(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    manager.add(requests[1])
    held = manager.stats().host_bytes

    for _ in range(3):
        manager.remove(1)
        manager.add(requests[1])

    assert (manager.stats().host_bytes, manager.stats().num_on_host) == (held, 1)


def test_behaviour_17_more_than_there_are_slots_is_a_runtime_error_that_changes_nothing(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    for number in (1, 2, 3):
        manager.add(requests[number])
    before = manager.residency()

    with pytest.raises(RuntimeError, match="of 2"):
        manager.acquire_all([requests[number] for number in (1, 2, 3)])

    assert manager.residency() == before
    assert manager.remove(1)


def test_behaviour_18_asking_again_writes_nothing_and_what_others_add_moves_no_slot_in_use(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    slot = acquired(manager, requests[1])
    table = manager.packed(0, "qkv")
    entry, row = table.weights(slot), table.table[slot].clone()
    epoch = manager.epoch

    assert acquired(manager, requests[1]) == slot
    assert manager.epoch == epoch
    for number in (2, 3, 4):
        manager.add(requests[number])

    assert acquired(manager, requests[1]) == slot
    assert table.weights(slot) is entry
    assert table.table[slot].equal(row)
    assert manager.stats().revisions[str(requests[1].revision)].loads == 1


def test_two_ids_of_one_revision_share_it_until_the_last_is_removed(
    manager: LoRAManager, requests: dict[int, LoRARequest]
) -> None:
    alias = LoRARequest("alias", 11, requests[1].lora_path, requests[1].revision)
    manager.add(requests[1])
    assert manager.add(alias) is False
    assert manager.list() == {1, 11}

    manager.remove(1)
    assert manager.residency() == {requests[1].revision: "device"}
    manager.remove(11)
    assert manager.residency() == {}


def test_adding_a_bad_adapter_raises_and_changes_nothing(
    manager: LoRAManager, requests: dict[int, LoRARequest], tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        manager.add(requests[number])
    before = manager.residency()

    with pytest.raises(AdapterNotFound, match="'gone'"):
        manager.add(LoRARequest("gone", 9, str(tmp_path / "gone")))

    assert manager.residency() == before
    assert manager.list() == {1, 2, 3}


def test_adding_where_every_place_is_in_use_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    manager = new_manager(max_loras=2, max_cpu_loras=2)
    requests = {number: request_of(tmp_path, number) for number in (1, 2, 3)}
    for number in (1, 2):
        acquired(manager, requests[number])

    with pytest.raises(AllSlotsPinned, match="'adapter-3' has no place on the host"):
        manager.add(requests[3])
    manager.close()

    assert manager.stats().num_loading == 0
    assert set(manager.residency()) == {requests[1].revision, requests[2].revision}


def test_behaviour_18_an_adapter_added_beside_running_ones_waits_on_the_host(tmp_path: Path) -> None:
    manager = new_manager(max_loras=1, max_cpu_loras=2)
    running, added = request_of(tmp_path, 1), request_of(tmp_path, 2)
    acquired(manager, running)

    assert manager.add(added) is True
    with pytest.raises(AdapterError, match="no slot to pin adapter id 2: all are in use"):
        manager.pin(2)
    manager.close()

    assert manager.residency() == {running.revision: "device", added.revision: "host"}
