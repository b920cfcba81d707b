"""Many adapters through few places: the right weights in every slot, and nothing left over at the end."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.unit.workers.engine.lora.adapter_writer import BASE
from tests.unit.workers.engine.lora.manager_fixtures import acquired, new_manager, request_of
from tests.unit.workers.engine.lora.numbered_requests import answers_of, numbered_request
from workers.engine.core.lora_request import LoRARequest

NUM_ADAPTERS, NUM_SLOTS, NUM_PLACES = 60, 4, 8


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small gain nothing from threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_behaviour_19_sixty_adapters_through_four_slots_never_answer_for_each_other(
    tmp_path: Path,
) -> None:
    requests = [numbered_request(tmp_path, number) for number in range(1, NUM_ADAPTERS + 1)]
    manager = new_manager(NUM_SLOTS, NUM_PLACES)
    dice = random.Random(5)
    order = [*requests, *dice.choices(requests, k=60)]
    dice.shuffle(order)
    running: list[tuple[LoRARequest, int]] = []

    for request in order:
        while len(running) >= dice.randint(1, NUM_SLOTS):
            manager.release(running.pop(dice.randrange(len(running)))[0])
        running.append((request, acquired(manager, request)))
        answers = answers_of(manager, [slot for _, slot in running])
        assert answers == [float(held.lora_int_id) for held, _ in running]
        stats = manager.stats()
        assert stats.num_on_device <= NUM_SLOTS
        assert stats.num_on_host <= NUM_PLACES

    for request, _ in running:
        manager.release(request)
    epochs = [change.epoch for change in manager.drain_changes()]
    assert epochs == list(range(1, len(epochs) + 1))
    stats = manager.stats()
    assert stats.loads - stats.evictions == stats.num_on_host == NUM_PLACES
    assert stats.failures == 0
    for lora_int_id in manager.list():
        assert manager.remove(lora_int_id)
    manager.close()
    assert manager.residency() == {}
    assert manager.list() == set()
    stats = manager.stats()
    assert (stats.num_on_device, stats.num_on_host, stats.host_bytes, stats.num_loading) == (0, 0, 0, 0)
    assert all(
        manager.packed(layer, module).weights(slot) is None
        for layer in range(BASE.num_layers)
        for module in ("qkv", "o", "gate_up", "down")
        for slot in range(NUM_SLOTS)
    )
    assert not manager.packed(0, "qkv").table.any()  # which holds every module's entries


def test_behaviour_14_eight_threads_that_want_one_cold_adapter_cause_one_load(tmp_path: Path) -> None:
    """The manager belongs to the engine's thread: callers of other threads take turns at its door."""
    manager, request = new_manager(), request_of(tmp_path, 1)
    door, start = threading.Lock(), threading.Barrier(8)

    def want(number: int) -> int:
        mine = LoRARequest(f"name-{number}", number, request.lora_path, request.revision)
        start.wait()
        while True:
            with door:
                slot = manager.acquire(mine)
            if slot is not None:
                return slot

    with ThreadPoolExecutor(8) as pool:
        slots = list(pool.map(want, range(1, 9)))
    manager.close()

    assert slots == [0] * 8
    assert manager.stats().loads == 1
    assert manager.list() == set(range(1, 9))
