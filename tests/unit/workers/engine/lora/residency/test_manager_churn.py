"""Many adapters through few places: the right weights in every slot, and nothing left over at the end."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kernels.lora.segments import Segments
from kernels.registry import build
from tests.unit.workers.engine.lora.adapter_writer import BASE, HIDDEN, config_of, write_adapter
from tests.unit.workers.engine.lora.manager_fixtures import acquired, new_manager, request_of
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.digest import adapter_digest
from workers.engine.lora.residency.manager import LoRAManager

NUM_ADAPTERS, NUM_SLOTS, NUM_PLACES = 60, 4, 8
TARGETS = (("q_proj",), ("q_proj", "v_proj"), ("q_proj", "k_proj", "o_proj", "down_proj"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small gain nothing from threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _numbered(folder: Path, number: int) -> LoRARequest:
    """Write an adapter that adds `number` to the first output of every q_proj, for an input of ones."""
    targets = TARGETS[number % len(TARGETS)]
    rank = 1 + number % 20
    tensors = {}
    for module, shape in BASE.shapes.items():
        name = module.rpartition(".")[2]
        if name in targets:
            a, b = torch.zeros(rank, shape.in_features), torch.zeros(shape.out_features, rank)
            if name == "q_proj":
                a[-1, 0] = b[0, -1] = 1.0
                b *= number
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
    config = config_of(rank, targets, lora_alpha=rank)
    path = write_adapter(folder / str(number), config=config, tensors=tensors)
    return LoRARequest(f"n{number}", number, str(path), adapter_digest(path))


def _answers(manager: LoRAManager, slots: list[int]) -> list[float]:
    out = torch.zeros(len(slots), 2 * HIDDEN)
    add_lora = build("cpu", torch.float32).lora_add
    add_lora(out, torch.ones(len(slots), HIDDEN), Segments.from_slots(slots), manager.packed(1, "qkv"))
    return out[:, 0].tolist()


def test_behaviour_19_sixty_adapters_through_four_slots_never_answer_for_each_other(
    tmp_path: Path,
) -> None:
    requests = [_numbered(tmp_path, number) for number in range(1, NUM_ADAPTERS + 1)]
    manager = new_manager(NUM_SLOTS, NUM_PLACES)
    dice = random.Random(5)
    order = [*requests, *dice.choices(requests, k=60)]
    dice.shuffle(order)
    running: list[tuple[LoRARequest, int]] = []

    for request in order:
        while len(running) >= dice.randint(1, NUM_SLOTS):
            manager.release(running.pop(dice.randrange(len(running)))[0])
        running.append((request, acquired(manager, request)))
        answers = _answers(manager, [slot for _, slot in running])
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
