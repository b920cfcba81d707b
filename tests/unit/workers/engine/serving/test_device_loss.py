"""A device that fails ends the engine's process at once, and the parent hears what it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest
import torch

from tests.polling import eventually
from tests.unit.workers.engine.failing_device import program
from workers.engine import EngineConfig, EngineProcess, SamplingParams
from workers.engine.core.errors import ConfigError, DeviceLost, EngineDied, EngineStartError
from workers.engine.serving import process as module
from workers.engine.serving.device_loss import start_failure
from workers.engine.serving.messages import AddRequest, DeviceFailed, EngineEvents, StartFailed

START_S = 60.0


class FailingEngine(EngineProcess):
    """An engine's process, and the file that makes its device fail."""

    def __init__(self, config: EngineConfig, order: Path) -> None:
        super().__init__(config)
        self._order = order

    def fail(self, where: str, kind: str) -> None:
        """Have the device fail from now on."""
        partial = self._order.with_name("order.partial")
        partial.write_text(f"{where} {kind}")
        partial.rename(self._order)

    def add(self, request_id: str, max_tokens: int = 200) -> None:
        """Ask for a text of so many tokens."""
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        self.send(AddRequest(request_id, [3, 4, 5], None, params, None))

    def hear(self, is_enough: Callable[[EngineEvents], bool] = lambda _events: False) -> None:
        """Receive until it is enough; raises what `receive` does."""
        eventually(lambda: (events := self.receive(0.2)) is not None and is_enough(events), START_S)


@pytest.fixture
def engine(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FailingEngine]:
    """An engine that was not started yet."""
    order = tmp_path / "order"
    monkeypatch.setattr(module, "_PROGRAM", program(order))
    # LoRA, and with it a process that loads adapters, where a test says so.
    config = EngineConfig(model=str(checkpoint), enable_lora=getattr(request, "param", False), num_threads=1)
    engine = FailingEngine(config, order)
    yield engine
    engine.stop()


@pytest.mark.parametrize("engine", [True], ids=["lora"], indirect=True)
def test_a_device_that_fails_in_a_step_ends_the_process_and_is_named(engine: FailingEngine) -> None:
    engine.start(START_S)
    children = psutil.Process(engine.pid).children()
    assert len(children) == 1
    engine.add("long")
    engine.hear(lambda events: bool(events.started))

    engine.fail("forward", "lost")
    with pytest.raises(DeviceLost) as lost:
        engine.hear()

    assert lost.value.reason == "AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert "an illegal memory access was encountered" in str(lost.value)
    assert not engine.is_alive
    eventually(lambda: not any(child.is_running() for child in children), what="the end of the loader")


def test_its_last_word_is_heard_before_commands_that_it_did_not_read(engine: FailingEngine) -> None:
    engine.start(START_S)
    engine.fail("forward", "lost")
    for number in range(300):  # more than it takes in before a step
        try:
            engine.add(str(number))
        except EngineDied:
            break

    with pytest.raises(DeviceLost):
        engine.hear()


def test_memory_that_runs_out_in_a_step_is_told_with_the_budget(engine: FailingEngine) -> None:
    info = engine.start(START_S)
    engine.fail("forward", "memory")
    engine.add("one")

    with pytest.raises(DeviceLost) as lost:
        engine.hear()

    assert "CUDA out of memory. Tried to allocate 2.00 GiB; of None bytes the engine had" in lost.value.reason
    assert "gpu_memory_utilization 0.9, lora_pool_bytes its default" in lost.value.reason
    assert f"{info.linear_bytes} bytes of linear modules and {info.num_kv_blocks} KV" in lost.value.reason


def test_another_error_in_a_step_is_no_loss_of_the_device(engine: FailingEngine) -> None:
    engine.start(START_S)
    engine.fail("forward", "bug")
    engine.add("one")

    with pytest.raises(EngineDied) as died:
        engine.hear()

    assert not isinstance(died.value, DeviceLost)


@pytest.mark.parametrize(
    ("kind", "reason", "says"),
    [
        ("lost", DeviceLost.code, "CUDA error: an illegal memory access"),
        ("memory", ConfigError.code, "lower these, give it a card with more memory"),
        ("bug", "engine_start", "RuntimeError: The size of tensor a"),
    ],
)
def test_a_start_that_fails_says_whether_it_was_the_device_or_its_configuration(
    engine: FailingEngine, kind: str, reason: str, says: str
) -> None:
    engine.fail("start", kind)

    with pytest.raises(EngineStartError, match=says) as failed:
        engine.start(START_S)

    assert failed.value.reason == reason


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
def test_an_engine_on_a_card_that_torch_cannot_use_is_refused_by_its_configuration(checkpoint: Path) -> None:
    process = EngineProcess(EngineConfig(model=str(checkpoint), device="cuda"))

    with pytest.raises(EngineStartError, match="cannot use a card: Torch not compiled with CUDA") as refused:
        process.start(START_S)

    assert refused.value.reason == ConfigError.code


def test_a_process_that_hangs_on_its_device_is_killed(
    engine: FailingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.start(START_S)
    os.kill(engine.pid, signal.SIGSTOP)
    ours, theirs = Pipe()
    monkeypatch.setattr(engine, "_connection", ours)
    theirs.send(DeviceFailed("it hangs"))

    with pytest.raises(DeviceLost, match="it hangs") as lost:
        engine.receive(1.0)

    assert lost.value.exitcode == -signal.SIGKILL


def test_a_refusal_of_the_engines_own_keeps_its_code() -> None:
    config = EngineConfig(model="/model", device="cuda")

    refused = start_failure(ConfigError("device is 'cuda', but ..."), config)

    assert refused == StartFailed("engine_config", "device is 'cuda', but ...")
