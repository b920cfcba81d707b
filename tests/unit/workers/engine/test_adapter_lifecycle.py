"""Adapters come, change and fail while others generate; each request has one of them whole, or the reason."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.workers.engine.look_ahead import BOTH
from tests.unit.workers.engine.lora.manager_fixtures import stuck_request
from tests.unit.workers.engine.numbered_adapters import NumberedAdapters, save_base
from workers.engine import EngineConfig, LLMEngine, LoRARequest, RequestOutput, SamplingParams

pytestmark = BOTH

MakeEngine = Callable[..., LLMEngine]
PROMPT = [5, 7, 11]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("numbers"))


@pytest.fixture
def adapters(tmp_path: Path) -> NumberedAdapters:
    return NumberedAdapters(tmp_path)


@pytest.fixture
def make_engine(base: Path, look_ahead: int) -> Iterator[MakeEngine]:
    made: list[LLMEngine] = []

    def make(**settings: object) -> LLMEngine:
        limits = {"max_loras": 2, "max_cpu_loras": 4, "max_model_len": 64, "num_threads": 1, **settings}
        config = EngineConfig(model=str(base), enable_lora=True, **limits)  # type: ignore[arg-type]
        made.append(LLMEngine(config, look_ahead=look_ahead))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def _add(engine: LLMEngine, name: str, lora: LoRARequest | None, max_tokens: int = 3) -> None:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    engine.add_request(name, PROMPT, params, lora)


def _run(engine: LLMEngine) -> dict[str, RequestOutput]:
    outputs: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
    return outputs


def _code(output: RequestOutput) -> str | None:
    return None if output.error is None else output.error.code


def _maps() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:adapter")


def test_behaviour_22_a_reload_while_it_generates_mixes_nothing(
    make_engine: MakeEngine, adapters: NumberedAdapters
) -> None:
    engine = make_engine()
    lora = adapters.write(3, name="changing")
    engine.add_lora(lora)
    _add(engine, "before", lora, max_tokens=20)
    engine.step()

    adapters.write(5, name="changing")
    engine.add_lora(lora, load_inplace=True)
    _add(engine, "after", lora, max_tokens=20)
    outputs = _run(engine)

    assert outputs["before"].outputs[0].token_ids == [3] * 20
    assert outputs["after"].outputs[0].token_ids == [5] * 20
    stats = engine.stats().adapters
    assert stats is not None
    assert stats.loads == 2
    assert len(engine.residency()) == 1, "the old files' weights are free with the last that ran with them"
    assert engine.list_loras() == {3}


def test_behaviour_20_an_adapter_removed_gives_its_memory_back(
    make_engine: MakeEngine, adapters: NumberedAdapters
) -> None:
    engine = make_engine()
    maps = _maps()
    lora = adapters.write(9)
    _add(engine, "one", lora)
    assert _run(engine)["one"].outputs[0].token_ids == [9] * 3
    assert _maps() == maps + 1

    assert engine.remove_lora(9)

    assert _maps() == maps
    assert engine.residency() == {}
    assert not engine.remove_lora(9)


def test_aborting_the_last_that_waits_for_a_cold_adapter_cancels_its_load(
    make_engine: MakeEngine, adapters: NumberedAdapters, tmp_path: Path
) -> None:
    engine = make_engine()
    engine.prefetch(stuck_request(tmp_path))
    engine.prefetch(adapters.write(1))  # at hand in the loader, not to be taken back
    cold = adapters.write(2)
    for name in ("first", "second"):
        _add(engine, name, cold)

    engine.abort_request("first")
    assert engine._adapters.is_loading(cold)
    engine.abort_request("second")

    assert not engine._adapters.is_loading(cold)


def test_a_load_that_hangs_ends_its_own_request_in_time_and_no_other(
    make_engine: MakeEngine, adapters: NumberedAdapters, tmp_path: Path
) -> None:
    engine = make_engine(lora_load_timeout_s=3.0)
    _add(engine, "stuck", stuck_request(tmp_path))
    _add(engine, "good", adapters.write(4))
    _add(engine, "base", None, max_tokens=40)

    outputs = _run(engine)

    assert {name: _code(output) for name, output in outputs.items()} == {
        "stuck": "adapter_load_timeout",
        "good": None,
        "base": None,
    }
    assert outputs["good"].outputs[0].token_ids == [4] * 3


def test_a_doubt_about_an_adapters_base_stands_in_its_results(
    make_engine: MakeEngine, adapters: NumberedAdapters
) -> None:
    engine = make_engine()
    doubted, known = adapters.write(4), adapters.write(6)
    config = Path(doubted.lora_path) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/out/model"}))
    _add(engine, "doubted", doubted)
    _add(engine, "said", replace(known, base_model_name=""))

    outputs = _run(engine)

    (said,) = outputs["doubted"].warnings
    assert said.startswith(f"{doubted.lora_name}: it calls its base '/out/model'; whether that is")
    assert outputs["said"].warnings == ()


def test_a_loader_that_dies_costs_the_load_under_way_and_comes_back(
    make_engine: MakeEngine, adapters: NumberedAdapters, tmp_path: Path
) -> None:
    engine = make_engine()
    running = adapters.write(4)
    engine.add_lora(running)
    _add(engine, "running", running, max_tokens=40)
    engine.step()
    _add(engine, "lost", stuck_request(tmp_path))
    _add(engine, "next", adapters.write(6))

    os.kill(engine._adapters._loads._loader._child.pid, signal.SIGKILL)  # type: ignore[union-attr]
    outputs = _run(engine)

    assert _code(outputs["lost"]) == "adapter_loader_died"
    assert outputs["lost"].error is not None
    assert outputs["lost"].error.retryable
    assert outputs["running"].outputs[0].token_ids == [4] * 40
    assert outputs["next"].outputs[0].token_ids == [6] * 3


def test_large_adapters_take_turns_within_the_byte_budget(
    make_engine: MakeEngine, adapters: NumberedAdapters
) -> None:
    engine = make_engine(max_cpu_lora_bytes=130_000)
    numbers = [63, 127, 191, 255, 319]  # rank 64 all of them
    for number in numbers:
        _add(engine, str(number), adapters.write(number))

    outputs = _run(engine)

    for number in numbers:
        assert outputs[str(number)].outputs[0].token_ids == [number] * 3
    stats = engine.stats().adapters
    assert stats is not None
    assert 0 < stats.host_bytes <= 130_000
    assert stats.evictions > 0


def test_an_engine_forgotten_without_close_leaves_no_memory(base: Path, adapters: NumberedAdapters) -> None:
    gc.collect()  # engines of other tests
    maps = _maps()
    engine = LLMEngine(EngineConfig(model=str(base), enable_lora=True, num_threads=1))
    engine.add_lora(adapters.write(8))
    assert _maps() == maps + 1

    del engine
    gc.collect()

    assert _maps() == maps
