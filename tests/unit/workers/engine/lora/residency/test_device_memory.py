"""Adapters that must be copied before they can be used: a device's memory, played by more of the host's."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.workers.engine.lora.manager_fixtures import acquired, new_manager, request_of
from tests.unit.workers.engine.lora.numbered_requests import answers_of, numbered_request
from workers.engine.core.errors import AdapterTooLarge, AllSlotsPinned, EngineError
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.residency.adapter_memory import DeviceMemory
from workers.engine.lora.residency.copier import DirectCopier
from workers.engine.lora.residency.manager import LoRAManager

ARENA_BYTES = 64 << 10
NUM_ADAPTERS, NUM_SLOTS, NUM_PLACES = 40, 5, 8
NUM_LOOKS = 20
"""More than the slowest copies of one adapter after another take."""


class LateCopy:
    """A copy that is done after so many looks; until then its target holds NaN."""

    def __init__(self, pieces: list[tuple[Tensor, Tensor]], num_looks: int) -> None:
        self._pieces = pieces
        self._num_looks = num_looks
        for _, target in pieces:
            target.fill_(0xFF)

    @property
    def is_done(self) -> bool:
        self._num_looks -= 1
        if self._num_looks <= 0:
            self.wait()
        return self._num_looks <= 0

    def wait(self) -> None:
        for source, target in self._pieces:
            target.copy_(source)
        self._pieces = []


class LateCopier:
    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.num_copies = 0

    def copy(self, pieces: list[tuple[Tensor, Tensor]]) -> LateCopy:
        self.num_copies += 1
        return LateCopy(pieces, self._dice.randint(1, 4))

    def close(self) -> None:
        pass


class BrokenCopy:
    @property
    def is_done(self) -> bool:
        self.wait()
        return True

    def wait(self) -> None:
        raise EngineError("the card is gone")


class BrokenCopier(LateCopier):
    def copy(self, pieces: list[tuple[Tensor, Tensor]]) -> BrokenCopy:  # type: ignore[override]
        del pieces
        return BrokenCopy()


def with_arena(
    copier: LateCopier | DirectCopier, num_bytes: int = ARENA_BYTES, *, num_slots: int = NUM_SLOTS
) -> LoRAManager:
    memory = DeviceMemory(torch.full((num_bytes,), 0xFF, dtype=torch.uint8), copier)
    return new_manager(num_slots, NUM_PLACES, memory=memory)


def wait_for(manager: LoRAManager, requests: Iterable[LoRARequest]) -> None:
    for request in requests:
        manager.prefetch(request)
    while manager.num_loading:
        manager.collect()


def test_adapters_in_an_arena_never_answer_for_each_other_nor_before_they_are_there(tmp_path: Path) -> None:
    requests = [numbered_request(tmp_path, number) for number in range(1, NUM_ADAPTERS + 1)]
    dice = random.Random(7)
    copier = LateCopier(dice)
    memory = DeviceMemory(torch.full((ARENA_BYTES,), 0xFF, dtype=torch.uint8), copier)
    manager = new_manager(NUM_SLOTS, NUM_PLACES, memory=memory)
    order = [*requests, *dice.choices(requests, k=60)]
    dice.shuffle(order)
    running: list[tuple[LoRARequest, int]] = []

    for request in order:
        while len(running) >= dice.randint(1, NUM_SLOTS):
            manager.release(running.pop(dice.randrange(len(running)))[0])
        wait_for(manager, [request])
        for _ in range(NUM_LOOKS):  # at the most, if there is room between those that run
            if (slot := manager.acquire(request)) is not None:
                break
        else:
            while running and slot is None:
                manager.release(running.pop(dice.randrange(len(running)))[0])
                looks = (manager.acquire(request) for _ in range(NUM_LOOKS))
                slot = next((one for one in looks if one is not None), None)
        assert slot is not None, "nothing runs, and still it has no place"
        running.append((request, slot))
        answers = answers_of(manager, [slot for _, slot in running])
        assert answers == [float(held.lora_int_id) for held, _ in running]

    assert copier.num_copies > NUM_ADAPTERS
    assert manager.stats().slot_evictions
    for request, _ in running:
        manager.release(request)
    for lora_int_id in manager.list():
        assert manager.remove(lora_int_id)
    manager.close()
    assert not manager.packed(0, "qkv").table.any()
    assert memory.num_free_bytes == ARENA_BYTES


def test_a_slot_whose_adapter_is_on_its_way_is_given_to_nobody(tmp_path: Path) -> None:
    copier = LateCopier(random.Random(1))
    manager = with_arena(copier, num_slots=1)
    first, second = (numbered_request(tmp_path, number) for number in (1, 2))
    wait_for(manager, [first, second])
    copier._dice = random.Random(0)
    manager.collect()

    slots: list[int | None] = []
    while not slots or slots[-1] is None:
        manager.collect()
        acquired_slots = manager.acquire_all([first])
        assert manager.acquire_all([second]) is None
        slots.append(None if acquired_slots is None else acquired_slots[0].slot)

    assert answers_of(manager, [0]) == [1.0]
    assert manager.stats().slot_evictions == 0
    manager.close()


def test_who_asks_first_gets_all_that_it_needs_though_others_need_the_same_room(tmp_path: Path) -> None:
    """Two pairs for two slots, asked for in the same order in every step, as the batcher does."""
    copier = LateCopier(random.Random(3))
    manager = with_arena(copier, num_slots=2)
    pairs = [[numbered_request(tmp_path, number) for number in pair] for pair in ((1, 2), (3, 4))]
    wait_for(manager, [request for pair in pairs for request in pair])

    for _ in range(20):
        manager.collect()
        if (held := manager.acquire_all(pairs[0])) is not None:
            break
        assert manager.acquire_all(pairs[1]) is None

    assert held is not None
    assert answers_of(manager, [one.slot for one in held]) == [1.0, 2.0]
    assert copier.num_copies == 2
    manager.close()


def test_room_is_made_by_those_that_nobody_uses_even_if_it_lies_in_pieces(tmp_path: Path) -> None:
    """Three small ones, the middle one in use: a large one fits only when that is gone too."""
    small = [request_of(tmp_path, number, rank=4) for number in (1, 2, 3)]
    large = request_of(tmp_path, 4, rank=40)
    manager = with_arena(DirectCopier(), 48 << 10, num_slots=4)
    wait_for(manager, [*small, large])
    for request in small:
        acquired(manager, request)
    manager.release(small[0])
    manager.release(small[2])
    assert manager.acquire(large) is None
    assert manager.stats().num_on_device == 1

    manager.release(small[1])

    assert manager.acquire(large) is not None
    assert manager.stats().slot_evictions == 3
    manager.close()


def test_a_pair_in_the_way_of_each_other_is_placed_anew(tmp_path: Path) -> None:
    """The first of them lies where the second would need to; nobody else holds anything."""
    first, second, other = (
        request_of(tmp_path, number, rank=rank) for number, rank in ((1, 16), (2, 40), (3, 16))
    )
    manager = with_arena(DirectCopier(), 60 << 10, num_slots=3)
    wait_for(manager, [first, second, other])
    acquired(manager, other)
    acquired(manager, first)
    manager.release(first)
    manager.release(other)
    assert manager.remove(3)

    held = manager.acquire_all([first, second])

    assert held is not None
    manager.close()


def test_a_request_that_pinned_adapters_leave_no_room_for_is_told_so_and_waits_for_nothing(
    tmp_path: Path,
) -> None:
    """The pinned one lies in the middle: both gaps together would do."""
    first, pinned = (request_of(tmp_path, number, rank=4) for number in (1, 2))
    large = request_of(tmp_path, 4, rank=40)
    manager = with_arena(DirectCopier(), 64 << 10, num_slots=4)
    wait_for(manager, [first, pinned, large])
    for request in (first, pinned):
        manager.add(request)
    assert manager.pin(pinned.lora_int_id)

    with pytest.raises(
        AllSlotsPinned, match=r"pinned adapters leave gaps.*unpin one, or raise lora_pool_bytes"
    ):
        manager.acquire(large)

    assert manager.unpin(pinned.lora_int_id)
    assert acquired(manager, large) >= 0
    manager.close()


def test_adapters_that_never_fit_together_are_refused_with_the_bytes(tmp_path: Path) -> None:
    manager = with_arena(DirectCopier(), 2048)
    request = request_of(tmp_path, 1, rank=8)
    wait_for(manager, [request])

    with pytest.raises(
        AdapterTooLarge, match=r"adapter 'adapter-1': together they take \d+ bytes.*is 2048; "
    ):
        manager.acquire_all([request])
    manager.close()


def test_a_copy_that_fails_is_told_to_the_next_step(tmp_path: Path) -> None:
    manager = with_arena(BrokenCopier(random.Random(0)))
    request = numbered_request(tmp_path, 1)
    wait_for(manager, [request])
    assert manager.acquire_all([request]) is None

    with pytest.raises(EngineError, match="the card is gone"):
        manager.collect()


def test_an_adapter_that_is_added_is_there_and_one_on_its_way_can_be_removed(tmp_path: Path) -> None:
    manager = with_arena(LateCopier(random.Random(2)))
    first, second = (numbered_request(tmp_path, number) for number in (1, 2))

    assert manager.add(first)
    assert answers_of(manager, [0]) == [1.0]
    wait_for(manager, [second])
    assert manager.acquire_all([second]) is None
    assert manager.remove(2)

    assert manager.list() == {1}
    manager.close()
