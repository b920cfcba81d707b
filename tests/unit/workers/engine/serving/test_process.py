"""The engine's process: commands in, events out, and nothing left behind when either side dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import psutil
import pytest

from workers.engine import (
    EngineConfig,
    EngineProcess,
    LoRARequest,
    RequestOutput,
    SamplingParams,
    StructuredOutputsParams,
)
from workers.engine.core.errors import EngineDied, EngineStartError
from workers.engine.serving.messages import (
    AbortRequest,
    AddRequest,
    DropAdapter,
    EngineEvents,
    PlanResidency,
    PrefetchAdapter,
)

Greedy = Callable[[list[int], int], list[int]]
MakeParent = Callable[..., subprocess.Popen[str]]
DEADLINE_S = 60.0
TINY = Path(__file__).parents[5] / "examples" / "tiny" / "base"


def greedy_params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def add(request_id: str, prompt: list[int] | str | None, max_tokens: int = 8) -> AddRequest:
    return AddRequest(request_id, prompt, None, greedy_params(max_tokens), None)


def receive_until(
    process: EngineProcess, is_enough: Callable[[list[EngineEvents]], bool]
) -> list[EngineEvents]:
    """Collect events until they are enough; fail at the deadline."""
    events: list[EngineEvents] = []
    deadline = time.monotonic() + DEADLINE_S
    while not is_enough(events):
        assert time.monotonic() < deadline, f"not enough after {DEADLINE_S} s: {events}"
        if (event := process.receive(0.2)) is not None:
            events.append(event)
    return events


def finished(events: list[EngineEvents]) -> dict[str, RequestOutput]:
    return {output.request_id: output for event in events for output in event.finished}


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} is still there"
        threading.Event().wait(0.02)


@pytest.fixture(scope="module")
def process(checkpoint: Path) -> Iterator[EngineProcess]:
    """A running engine process that serves eight at once; the thread that started it has ended."""
    process = EngineProcess(EngineConfig(model=str(checkpoint), max_num_seqs=8, num_threads=1))
    starter = threading.Thread(target=process.start, args=(DEADLINE_S,))
    starter.start()
    starter.join(2 * DEADLINE_S)
    assert not starter.is_alive()
    yield process
    process.stop()


def test_requests_go_round_and_busy_time_is_their_sum(
    process: EngineProcess, prompts: list[list[int]], greedy: Greedy
) -> None:
    process.send(add("before", prompts[0]))
    before = receive_until(process, lambda events: "before" in finished(events))[-1]
    for index, prompt in enumerate(prompts):
        process.send(add(str(index), prompt))

    events = receive_until(process, lambda events: len(finished(events)) == len(prompts))

    outputs = finished(events)
    assert [outputs[str(index)].outputs[0].token_ids for index in range(len(prompts))] == [
        greedy(prompt, 8) for prompt in prompts
    ]
    started = [one.request_id for event in events for one in event.started]
    assert sorted(started, key=int) == [str(index) for index in range(len(prompts))]
    assert sum(output.metrics.device_ms for output in outputs.values()) == pytest.approx(
        events[-1].busy_ms - before.busy_ms
    )
    assert (events[-1].free_seqs, events[-1].waiting) == (8, 0)


def test_the_limits_of_the_engine_are_told_at_the_start(checkpoint: Path) -> None:
    process = EngineProcess(EngineConfig(model=str(checkpoint), max_num_seqs=2, num_kv_blocks=40))

    info = process.start(DEADLINE_S)

    assert (info.max_num_seqs, info.num_kv_blocks, info.max_model_len, info.vocab_size) == (2, 40, 256, 259)
    assert info.max_loras == 0
    process.stop()
    process.stop()
    wait_until_gone(process.pid)


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    process = EngineProcess(EngineConfig(model=str(tmp_path / "nowhere")))

    with pytest.raises(EngineStartError, match=r"checkpoint: model .*nowhere' is not a folder"):
        process.start(DEADLINE_S)

    wait_until_gone(process.pid)


def test_a_bad_request_is_answered_and_the_others_go_on(
    process: EngineProcess, prompts: list[list[int]], greedy: Greedy
) -> None:
    process.send(add("empty", []))
    process.send(add("none", None))
    process.send(AddRequest("broken", prompts[0], None, "no params", None))  # type: ignore[arg-type]
    process.send(add("good", prompts[0]))

    outputs = finished(receive_until(process, lambda events: len(finished(events)) == 4))

    codes = {name: output.error.code for name, output in outputs.items() if output.error is not None}
    assert codes == {"empty": "invalid_prompt", "none": "invalid_prompt", "broken": "invalid_command"}
    assert outputs["empty"].outputs[0].finish_reason == "error"
    assert outputs["good"].outputs[0].token_ids == greedy(prompts[0], 8)


def test_an_abort_answers_with_what_was_generated(process: EngineProcess, prompts: list[list[int]]) -> None:
    process.send(add("long", prompts[0], max_tokens=240))
    process.send(AbortRequest("unknown"))
    receive_until(process, lambda events: any(event.started for event in events))

    process.send(AbortRequest("long"))

    events = receive_until(process, lambda events: bool(finished(events)))
    assert finished(events)["long"].outputs[0].finish_reason == "abort"
    assert events[-1].free_seqs == 8


def test_an_idle_engine_says_nothing_and_burns_nothing(process: EngineProcess) -> None:
    while process.receive(0.2) is not None:
        pass  # of the tests before
    child = psutil.Process(process.pid)
    before = child.cpu_times()

    assert process.receive(1.0) is None

    after = child.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.1


def test_a_killed_child_is_noticed_by_both_directions(checkpoint: Path, prompts: list[list[int]]) -> None:
    process = EngineProcess(EngineConfig(model=str(checkpoint), num_threads=1))
    process.start(DEADLINE_S)
    process.send(add("long", prompts[0], max_tokens=240))

    os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(EngineDied) as died:
        receive_until(process, lambda _: False)
    assert died.value.exitcode == -signal.SIGKILL

    def send_late(_: object) -> bool:
        process.send(add("late", prompts[0]))
        return False

    with pytest.raises(EngineDied):
        receive_until(process, send_late)
    process.stop()


def test_the_child_ignores_the_terminal_s_signals(process: EngineProcess, prompts: list[list[int]]) -> None:
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)

    process.send(add("after signals", prompts[0]))

    outputs = finished(receive_until(process, lambda events: bool(finished(events))))
    assert outputs["after signals"].error is None


def test_it_lives_on_after_the_thread_that_started_it(
    process: EngineProcess, prompts: list[list[int]]
) -> None:
    process.send(add("after its starter", prompts[0]))

    outputs = finished(receive_until(process, lambda events: bool(finished(events))))
    assert outputs["after its starter"].error is None


@pytest.fixture(scope="module")
def lora_process(checkpoint: Path) -> Iterator[EngineProcess]:
    """A running engine process with two adapter slots."""
    config = EngineConfig(
        model=str(checkpoint), enable_lora=True, max_loras=2, max_cpu_loras=3, num_threads=1
    )
    process = EngineProcess(config)
    process.start(DEADLINE_S)
    yield process
    process.stop()


def residency(events: list[EngineEvents]) -> list[tuple[int, str]]:
    return [(change.epoch, change.tier) for event in events for change in event.residency]


def test_residency_is_told_as_it_changes(
    lora_process: EngineProcess, adapters: dict[str, LoRARequest], prompts: list[list[int]]
) -> None:
    lora_process.send(AddRequest("before", prompts[0], None, greedy_params(1), None))
    before = receive_until(lora_process, lambda events: "before" in finished(events))[-1].epoch
    lora_process.send(PrefetchAdapter(adapters["mlp"]))
    events = receive_until(lora_process, lambda events: len(residency(events)) == 1)

    lora_process.send(AddRequest("one", prompts[0], None, greedy_params(8), adapters["mlp"]))
    events += receive_until(lora_process, lambda events: bool(finished(events)))
    lora_process.send(DropAdapter(adapters["mlp"]))
    events += receive_until(lora_process, lambda events: bool(residency(events)))
    lora_process.send(PlanResidency((adapters["mlp"],), drop=(adapters["attention"],)))
    events += receive_until(lora_process, lambda events: bool(residency(events)))

    assert finished(events)["one"].error is None
    tiers = ("host", "device", "none", "host")
    assert residency(events) == [(before + number, tier) for number, tier in enumerate(tiers, start=1)]
    assert events[-1].epoch == before + 4


def test_an_adapter_in_use_is_not_dropped(
    lora_process: EngineProcess, adapters: dict[str, LoRARequest], prompts: list[list[int]]
) -> None:
    lora_process.send(AddRequest("long", prompts[0], None, greedy_params(200), adapters["patterns"]))
    receive_until(lora_process, lambda events: any(event.started for event in events))

    lora_process.send(DropAdapter(adapters["patterns"]))
    lora_process.send(DropAdapter(adapters["attention"]))

    events = receive_until(lora_process, lambda events: bool(finished(events)))
    assert finished(events)["long"].outputs[0].finish_reason == "length"
    assert residency(events) == []


def test_the_engine_keeps_its_card_and_the_processes_around_it_see_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7")
    process = EngineProcess(EngineConfig(model=str(TINY), enable_lora=True, num_threads=1))
    process.start(DEADLINE_S)
    structured = SamplingParams(max_tokens=2, structured_outputs=StructuredOutputsParams(regex="a+b"))
    process.send(AddRequest("structured", "hello>", None, structured, None))
    receive_until(process, lambda events: bool(finished(events)))

    engine = psutil.Process(process.pid)
    loader, check = sorted(engine.children(), key=lambda child: child.create_time())

    assert engine.environ()["CUDA_VISIBLE_DEVICES"] == "GPU-7"
    assert check.environ()["CUDA_VISIBLE_DEVICES"] == ""
    # The loader is a copy made before the engine needed more; `test_child.py` looks at its own environment.
    assert (mapped(engine), mapped(loader)) == ({"torch", "tokenizers", "llguidance"}, {"torch"})
    engine.kill()
    wait_until_gone(loader.pid)
    process.stop()


def mapped(process: psutil.Process) -> set[str]:
    """Return which of the packages that tell an engine from a loader a process has loaded."""
    parts = {part for map_ in process.memory_maps() for part in Path(map_.path).parts}
    return parts & {"torch", "tokenizers", "llguidance"}


def test_a_refused_adapter_answers_as_an_error(
    lora_process: EngineProcess, prompts: list[list[int]], tmp_path: Path
) -> None:
    missing = LoRARequest("missing", 9, str(tmp_path / "missing"))
    lora_process.send(PrefetchAdapter(missing))
    lora_process.send(AddRequest("bad", prompts[0], None, greedy_params(8), missing))
    lora_process.send(AddRequest("good", prompts[0], None, greedy_params(8), None))

    outputs = finished(receive_until(lora_process, lambda events: len(finished(events)) == 2))

    assert outputs["bad"].error is not None
    assert outputs["bad"].error.code == "adapter_not_found"
    assert outputs["good"].error is None


PARENT = """
    import sys, time
    from workers.engine import EngineConfig, EngineProcess, SamplingParams
    from workers.engine.serving.messages import AddRequest

    if __name__ == "__main__":
        config = EngineConfig(model=sys.argv[1], num_threads=1)
        processes = [EngineProcess(config) for _ in range(int(sys.argv[2]))]
        for process in processes:
            process.start(60)
            params = SamplingParams(max_tokens=10_000, temperature=0.0, ignore_eos=True)
            process.send(AddRequest("long", [3, 4, 5], None, params, None))
        print(*(process.pid for process in processes), flush=True)
        if sys.argv[3] == "waits":
            sys.stdin.read()
"""


@pytest.fixture
def make_parent(checkpoint: Path, tmp_path: Path) -> MakeParent:
    """Start a process that starts so many engine processes and prints their ids."""

    def make(num_children: int, then: Literal["returns", "waits"]) -> subprocess.Popen[str]:
        script = tmp_path / "parent.py"
        script.write_text(textwrap.dedent(PARENT))
        return subprocess.Popen(
            [sys.executable, str(script), str(checkpoint), str(num_children), then],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[5])},
            text=True,
        )

    return make


def read_pids(parent: subprocess.Popen[str]) -> list[int]:
    assert parent.stdout is not None
    return [int(pid) for pid in parent.stdout.readline().split()]


def test_no_child_outlives_a_parent_that_returns(make_parent: MakeParent) -> None:
    with make_parent(1, "returns") as parent:
        (pid,) = read_pids(parent)

        assert parent.wait(DEADLINE_S) == 0
        wait_until_gone(pid)


def test_no_child_outlives_a_parent_that_is_killed_not_even_one_that_is_stuck(
    make_parent: MakeParent,
) -> None:
    with make_parent(2, "waits") as parent:
        busy, stuck = read_pids(parent)
        os.kill(stuck, signal.SIGSTOP)

        parent.kill()

        assert parent.wait(DEADLINE_S) == -signal.SIGKILL
        wait_until_gone(busy)
        wait_until_gone(stuck)
