"""Many adapters through few places for long: no answer is another's, and nothing is left over."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.unit.workers.engine.numbered_adapters import NumberedAdapters, save_base
from workers.engine import EngineConfig, LLMEngine, LoRARequest, RequestOutput, SamplingParams
from workers.engine.core.errors import AdapterInUse, AllSlotsPinned

NUM_ADAPTERS, NUM_SLOTS, NUM_PLACES = 2000, 8, 64
NUM_IN_FLIGHT = 24
NUM_CYCLES, NUM_WARM_CYCLES = 10_000, 500
PARAMS = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("numbers"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> NumberedAdapters:
    return NumberedAdapters(tmp_path_factory.mktemp("numbered"))


@pytest.fixture
def engine(base: Path) -> Iterator[LLMEngine]:
    engine = LLMEngine(
        EngineConfig(
            model=str(base),
            enable_lora=True,
            max_loras=NUM_SLOTS,
            max_cpu_loras=NUM_PLACES,
            max_num_seqs=16,
            max_model_len=16,
            num_kv_blocks=32,
            num_threads=1,
        )
    )
    yield engine
    engine.close()


def _maps() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:adapter")


def _files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _check(output: RequestOutput) -> None:
    assert output.error is None
    assert isinstance(output.lora_request, LoRARequest)
    assert output.outputs[0].token_ids == [output.lora_request.lora_int_id] * PARAMS.max_tokens


def _add(engine: LLMEngine, name: str, request: LoRARequest) -> None:
    engine.add_request(name, [5, 7, 11], PARAMS, request)


def test_behaviour_19_two_thousand_adapters_through_eight_slots_never_answer_for_each_other(
    engine: LLMEngine, adapters: NumberedAdapters
) -> None:
    requests = [adapters.write(number) for number in range(1, NUM_ADAPTERS + 1)]
    dice = random.Random(5)
    order = [*requests, *dice.choices(requests, k=NUM_ADAPTERS // 4)]
    dice.shuffle(order)
    maps = _maps()

    num_asked = num_answered = 0
    while num_answered < len(order):
        while num_asked < len(order) and num_asked - num_answered < NUM_IN_FLIGHT:
            _add(engine, str(num_asked), order[num_asked])
            num_asked += 1
        for output in engine.step():
            _check(output)
            num_answered += 1
        if engine.residency_epoch % 100 == 0:
            assert _maps() - maps <= NUM_PLACES + 3
    engine.check_integrity()

    stats = engine.stats().adapters
    assert stats is not None
    assert stats.failures == 0
    assert stats.loads >= NUM_ADAPTERS
    assert (stats.num_on_host, stats.num_on_device) == (NUM_PLACES, NUM_SLOTS)
    assert stats.loads - stats.evictions == NUM_PLACES
    epochs = [change.epoch for change in engine.drain_residency_changes()]
    assert epochs == sorted(set(epochs))
    for lora_int_id in engine.list_loras():
        assert engine.remove_lora(lora_int_id)
    assert engine.residency() == {}
    assert _maps() == maps


def _meddle(engine: LLMEngine, dice: random.Random, requests: list[LoRARequest], pinned: set[int]) -> None:
    """Do one thing that an owner may do at any time."""
    request = dice.choice(requests)
    match dice.choice(["add", "pin", "unpin", "remove", "plan", "list"]):
        case "add":
            engine.add_lora(request, load_inplace=dice.random() < 0.3)
        case "pin" if len(pinned) < 3:
            engine.add_lora(request)
            engine.pin_lora(request.lora_int_id)
            pinned.add(request.lora_int_id)
        case "unpin" if pinned:
            engine.unpin_lora(pinned.pop())
        case "remove" if request.lora_int_id not in pinned:
            engine.remove_lora(request.lora_int_id)
        case "plan":
            engine.plan_residency(dice.sample(requests, 5), drop=dice.sample(requests, 5))
        case "list":
            assert engine.list_loras() <= {one.lora_int_id for one in requests}


def test_behaviour_19_owners_add_pin_remove_and_list_while_a_thousand_steps_generate(
    engine: LLMEngine, adapters: NumberedAdapters
) -> None:
    requests = [adapters.write(number) for number in range(1, 41)]
    dice = random.Random(6)
    pinned: set[int] = set()

    for step in range(1000):
        with suppress(AdapterInUse, AllSlotsPinned):  # said to the owner; the requests go on
            _meddle(engine, dice, requests, pinned)
        _add(engine, f"{step}", dice.choice(requests))
        for output in engine.step():
            _check(output)
    while engine.has_unfinished_requests():
        for output in engine.step():
            _check(output)
    engine.check_integrity()


def test_behaviour_21_loading_and_unloading_without_end_costs_no_memory_and_leaves_no_file(
    engine: LLMEngine, adapters: NumberedAdapters
) -> None:
    requests = [adapters.write(number) for number in (3, 16, 64)]
    engine.add_lora(requests[0])
    engine.remove_lora(requests[0].lora_int_id)
    processes = [psutil.Process(), psutil.Process(engine._adapters._loads._loader._child.pid)]  # type: ignore[union-attr]
    before = [0, 0]
    files = maps = 0

    for cycle in range(NUM_CYCLES):
        if cycle == NUM_WARM_CYCLES:
            before = [process.memory_info().rss for process in processes]
            files, maps = _files(), _maps()
        request = requests[cycle % len(requests)]
        assert engine.add_lora(request)
        assert engine.remove_lora(request.lora_int_id)
        engine.drain_residency_changes()

    for process, rss in zip(processes, before, strict=True):
        assert (process.memory_info().rss - rss) / (NUM_CYCLES - NUM_WARM_CYCLES) < 1024
    assert (_files(), _maps()) == (files, maps)
    assert engine.residency() == {}
    stats = engine.stats().adapters
    assert stats is not None
    assert (stats.num_on_device, stats.num_on_host, stats.host_bytes, stats.num_loading) == (0, 0, 0, 0)
    assert stats.loads == NUM_CYCLES + 1
