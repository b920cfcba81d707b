"""A step launched before the one before it is settled: what may happen meanwhile changes no answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import count, product, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.workers.engine.delayed import DelayedExecutor
from tests.unit.workers.engine.test_non_finite import copy_with
from workers.engine import EngineConfig, LLMEngine, LoRAMix, LoRARequest, RequestOutput, SamplingParams
from workers.engine.core.errors import AdapterInUse
from workers.engine.core.lora_request import AnyLoRA
from workers.engine.core.sampling_params import RequestOutputKind
from workers.engine.structured_output import StructuredOutputsParams

MakeEngine = Callable[..., LLMEngine]
Greedy = Callable[[list[int], int], list[int]]
EOS_ID = 1
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
STREAMED = replace(GREEDY, output_kind=RequestOutputKind.DELTA)
PROMPT = [5, 9, 200, 31]


@pytest.fixture(scope="module")
def look_ahead() -> int:
    """Every engine here looks ahead, but for those that it is compared with."""
    return 1


def run(engine: LLMEngine) -> list[RequestOutput]:
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
        engine.check_integrity()
    return outputs


def tokens(output: RequestOutput | None) -> list[int]:
    assert output is not None
    return output.outputs[0].token_ids


def test_the_next_forward_pass_is_launched_before_the_last_tokens_are_waited_for(
    make_engine: MakeEngine, greedy: Greedy
) -> None:
    engine = make_engine()
    executor = DelayedExecutor(engine, repeat(0))
    engine.on_started = lambda names: executor.events.append(f"started {names[0]}")

    (output,) = engine.generate(PROMPT, replace(GREEDY, max_tokens=3))

    assert executor.events == [
        "started generate-0",
        *["forward", "sample"],
        *["forward", "wait", "sample"] * 2,
        "wait",
    ]
    assert tokens(output) == greedy(PROMPT, 3)


def test_a_token_comes_one_step_later_than_without_looking_ahead(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_request("old", PROMPT, STREAMED)
    told = [[output.request_id for output in engine.step()] for _ in range(3)]
    engine.add_request("new", PROMPT, STREAMED)
    told += [[output.request_id for output in engine.step()] for _ in range(2)]

    assert told == [[], ["old"], ["old"], ["old"], ["old", "new"]]


def test_ends_that_are_known_beforehand_cost_no_row(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    params = [replace(GREEDY, max_tokens=1 + index) for index in range(len(prompts))]
    engine = make_engine(max_model_len=100)
    rows: list[int] = []
    schedule = engine._parts.batcher.schedule

    def count() -> object:
        step = schedule()
        rows.append(sum(row.num_tokens for row in step.rows))
        return step

    engine._parts.batcher.schedule = count  # type: ignore[method-assign, assignment]
    outputs = engine.generate(prompts, params)

    computed = sum(len(output.prompt_token_ids) + len(tokens(output)) - 1 for output in outputs)
    assert sum(rows) == computed - sum(output.metrics.num_cached_tokens for output in outputs)
    assert engine.stats().wasted_ms == 0
    assert [len(tokens(output)) for output in outputs] == list(range(1, 13))


def test_rows_of_those_who_end_unforeseen_are_counted_as_wasted(
    make_engine: MakeEngine, greedy: Greedy
) -> None:
    stop = greedy(PROMPT, 12)[4]
    engine = make_engine()

    outputs = engine.generate([PROMPT, [7, 8]], [replace(GREEDY, stop_token_ids=[stop]), GREEDY])

    stats = engine.stats()
    assert tokens(outputs[0]) == greedy(PROMPT, 12)[: greedy(PROMPT, 12).index(stop) + 1]
    assert 0 < stats.wasted_ms < stats.busy_ms
    shares = sum(output.metrics.device_ms for output in outputs)
    assert shares + stats.wasted_ms == pytest.approx(stats.busy_ms, rel=0.02)


def test_an_id_given_anew_does_not_receive_the_old_token(make_engine: MakeEngine, greedy: Greedy) -> None:
    engine = make_engine()
    DelayedExecutor(engine, repeat(0))
    engine.add_request("id", PROMPT, GREEDY)
    for _ in range(4):
        engine.step()

    aborted = engine.abort_request("id")
    engine.add_request("id", [7, 8, 9], GREEDY)
    (anew,) = run(engine)

    assert tokens(aborted) == greedy(PROMPT, 3)
    assert tokens(anew) == greedy([7, 8, 9], 12)


def test_what_is_in_flight_is_unfinished_and_settled_after_all_have_gone(make_engine: MakeEngine) -> None:
    engine = make_engine()
    DelayedExecutor(engine, repeat(0))
    engine.add_request("gone", PROMPT, GREEDY)
    engine.step()

    engine.abort_request("gone")
    assert engine.has_unfinished_requests()

    assert engine.step() == []
    assert not engine.has_unfinished_requests()
    stats = engine.stats()
    assert (stats.num_free_kv_blocks, stats.num_running) == (engine.info.num_kv_blocks, 0)
    assert stats.wasted_ms == pytest.approx(stats.busy_ms)


def test_an_adapter_is_in_use_until_the_step_in_flight_has_read_it(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest]
) -> None:
    engine = make_engine(enable_lora=True, max_loras=1, max_cpu_loras=2)
    mlp, other = adapters["mlp"], adapters["everything"]
    engine.add_lora(mlp)
    expected = [tokens(engine.generate(PROMPT, GREEDY, lora)[0]) for lora in (mlp, other)]
    engine.add_lora(mlp)
    DelayedExecutor(engine, repeat(0))
    engine.add_request("gone", PROMPT, GREEDY, mlp)
    engine.step()
    engine.abort_request("gone")

    with pytest.raises(AdapterInUse):
        engine.remove_lora(mlp.lora_int_id)
    engine.add_request("next", PROMPT, GREEDY, other)  # wants the same slot
    (output,) = run(engine)

    assert tokens(output) == expected[1]
    assert engine.remove_lora(mlp.lora_int_id)
    engine.close()


def test_closing_waits_for_the_step_in_flight(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest]
) -> None:
    engine = make_engine(enable_lora=True)
    engine.add_lora(adapters["mlp"])
    executor = DelayedExecutor(engine, repeat(0))
    engine.add_request("gone", PROMPT, GREEDY, adapters["mlp"])
    engine.step()

    engine.close()

    assert executor.events == ["forward", "sample", "wait"]


def test_a_preempted_sequence_keeps_the_token_in_flight(
    make_engine: MakeEngine, prompts: list[list[int]], greedy: Greedy
) -> None:
    engine = make_engine(max_model_len=128, num_kv_blocks=12)
    land = engine._parts.batcher.land
    kept: list[Any] = []

    def watch(spans: list) -> None:
        kept.extend(one for one in spans if not one.is_live and not one.sequence.has_ended)
        land(spans)

    engine._parts.batcher.land = watch  # type: ignore[method-assign, assignment]
    outputs = engine.generate(prompts, replace(GREEDY, max_tokens=24))

    assert kept, "nobody was preempted while a step was in flight"
    assert [tokens(output) for output in outputs] == [greedy(prompt, 24) for prompt in prompts]
    assert all(output.metrics.num_completion_tokens == 24 for output in outputs)


@pytest.mark.parametrize("half", ["forward", "sample"])
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_step_that_fails_is_taken_back_and_can_be_tried_again(
    checkpoint: Path, greedy: Greedy, monkeypatch: pytest.MonkeyPatch, half: str, ahead: int
) -> None:
    engine = LLMEngine(EngineConfig(model=str(checkpoint), num_threads=1), look_ahead=ahead)
    engine.add_request("one", PROMPT, GREEDY)
    for _ in range(3):
        engine.step()

    def fail(*_: object) -> object:
        raise MemoryError("no room")

    monkeypatch.setattr(engine._parts.executor, half, fail)
    with pytest.raises(MemoryError):
        engine.step()
    monkeypatch.undo()
    (output,) = run(engine)

    assert tokens(output) == greedy(PROMPT, 12)
    assert engine.stats().num_free_kv_blocks == engine.info.num_kv_blocks


@pytest.mark.parametrize("place", ["charge", "land", "confirm"])
@pytest.mark.parametrize("ahead", [0, 1])
def test_an_interrupt_while_results_are_taken_in_costs_no_token(
    checkpoint: Path, greedy: Greedy, monkeypatch: pytest.MonkeyPatch, place: str, ahead: int
) -> None:
    engine = LLMEngine(
        EngineConfig(model=str(checkpoint), num_threads=1, max_num_seqs=4, max_num_batched_tokens=6),
        look_ahead=ahead,
    )
    asks = replace(GREEDY, prompt_logprobs=1)
    engine.add_request("two", [*PROMPT, 77, 12, 130, 45], asks)  # whose prompt is computed in pieces
    engine.add_request("one", PROMPT, GREEDY)
    owner = engine._counters if place == "charge" else engine._parts.batcher
    take_in = getattr(owner, place)

    def be_interrupted(first: Any, *others: Any) -> None:
        take_in(first[:1] if place == "land" else first, *others)
        raise KeyboardInterrupt

    for num_steps in (0, 1, 3):
        for _ in range(num_steps):
            engine.step()
        monkeypatch.setattr(owner, place, be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(engine)
        monkeypatch.undo()
        engine.check_integrity()
    outputs = {output.request_id: output for output in run(engine)}

    assert tokens(outputs["one"]) == greedy(PROMPT, 12)
    assert tokens(outputs["two"]) == greedy([*PROMPT, 77, 12, 130, 45], 12)
    assert len(outputs["two"].prompt_logprobs or []) == 8
    assert engine.stats().num_free_kv_blocks == engine.info.num_kv_blocks
    engine.close()


# Anything at all, on a device that is as slow as it likes

KINDS: list[dict[str, object]] = [
    {},
    {"temperature": 1.2, "seed": 3, "stop": ["e", "a"], "output_kind": RequestOutputKind.DELTA},
    {"structured_outputs": StructuredOutputsParams(regex="[a-z]{3,5}x")},
    {"repetition_penalty": 1.3, "min_tokens": 3, "logprobs": 1, "prompt_logprobs": 1},
    {"n": 2, "temperature": 0.8, "seed": 5, "top_k": 20},
    {"temperature": 1.0, "seed": 8, "logit_bias": {EOS_ID: 30.0}, "ignore_eos": False, "min_tokens": 2},
]
ADAPTERS = ["base", "everything", "mix", "overflowing", "changing"]
MAX_STEPS = 20_000


@dataclass(frozen=True, slots=True)
class Load:
    """One request of a random load; `takes_over` adds another one under its id as soon as it is aborted."""

    arrives_at_step: int
    prompt: int
    kind: int
    adapter: int
    aborted_after_steps: int | None
    takes_over: bool


LOADS = st.lists(
    st.builds(
        Load,
        arrives_at_step=st.integers(0, 15),
        prompt=st.integers(0, 3),
        kind=st.integers(0, len(KINDS) - 1),
        adapter=st.integers(0, len(ADAPTERS) - 1),
        aborted_after_steps=st.none() | st.integers(0, 12),
        takes_over=st.booleans(),
    ),
    min_size=1,
    max_size=9,
)


class EngineRig:
    """One engine that looks ahead, one that does not, and what the latter answers to each request alone."""

    def __init__(self, make: MakeEngine, loras: dict[str, AnyLoRA | None], changing: list[Path]) -> None:
        stem = torch.randint(3, 259, (40,), generator=torch.Generator().manual_seed(3)).tolist()
        self.prompts = [stem[:1], stem[:17], stem[:33], [*stem[:20], 9, *stem[21:]]]
        self.loras = loras
        self._changing = changing
        self.engine = make(
            enable_lora=True, max_loras=2, max_cpu_loras=3, max_num_seqs=4, max_model_len=64,
            max_num_batched_tokens=13, num_kv_blocks=6,
        )  # fmt: skip
        self.engine.generate(PROMPT, self.params(2))  # its grammar is compiled once
        self.pace = [0]
        DelayedExecutor(self.engine, (self.pace[number % len(self.pace)] for number in count()))
        self._lonely = make(enable_lora=True, max_loras=3, max_model_len=64, enable_prefix_caching=False)
        self._lonely._parts.executor.look_ahead = 0
        self.answer = cache(self._answer)

    def params(self, kind: int) -> SamplingParams:
        return replace(GREEDY, max_tokens=10, **KINDS[kind])  # type: ignore[arg-type]  # of many kinds

    def reload(self, times: int) -> None:
        """Write the other of two adapters over the one that changes, and have it read at once."""
        lora = self.loras["changing"]
        assert isinstance(lora, LoRARequest)
        shutil.rmtree(lora.lora_path, ignore_errors=True)
        shutil.copytree(self._changing[times % 2], lora.lora_path)
        self.engine.add_lora(lora, load_inplace=True)

    def allowed(self, load: Load) -> list[RequestOutput]:
        """The outputs that a request may have: one, but for the adapter that changes meanwhile.

        Each completion keeps the revision with which it joins, and two of one request may join on either
        side of a reload.
        """
        name = ADAPTERS[load.adapter]
        names = [name] if name != "changing" else ["changing-0", "changing-1"]
        answers = [self.answer(load.prompt, load.kind, one) for one in names]
        return [
            replace(answers[0], outputs=list(parts))
            for parts in product(*zip(*(answer.outputs for answer in answers), strict=True))
        ]

    def _answer(self, prompt: int, kind: int, name: str) -> RequestOutput:
        params = replace(self.params(kind), output_kind=RequestOutputKind.FINAL_ONLY)
        self._lonely.add_request("same seed", self.prompts[prompt], params, self.loras[name])
        (output,) = run(self._lonely)
        return output


@pytest.fixture(scope="module")
def rig(
    checkpoint: Path, adapters: dict[str, LoRARequest], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineRig]:
    folder = tmp_path_factory.mktemp("look-ahead")
    two = [Path(adapters[name].lora_path) for name in ("attention", "one-module")]
    loras: dict[str, AnyLoRA | None] = {
        "base": None,
        "everything": adapters["everything"],
        "mix": LoRAMix([(adapters["everything"], 0.5), (adapters["mlp"], -0.5)]),
        "overflowing": copy_with(adapters["everything"], folder / "overflowing", 98, 3e38),
        "changing": LoRARequest("changing", 97, str(folder / "changing")),
        "changing-0": LoRARequest("changing-0", 95, str(two[0])),
        "changing-1": LoRARequest("changing-1", 96, str(two[1])),
    }

    def make(**limits: object) -> LLMEngine:
        config = EngineConfig(model=str(checkpoint), num_threads=1, **limits)  # type: ignore[arg-type]
        return LLMEngine(config, look_ahead=1)

    rig = EngineRig(make, loras, two)
    yield rig
    rig.engine.close()
    rig._lonely.close()


def agrees(output: RequestOutput, expected: RequestOutput) -> bool:
    """Whether a request had its answer, or the beginning of it if it was aborted."""
    if any(one.finish_reason == "abort" for one in output.outputs):
        return all(
            part.token_ids == whole.token_ids[: len(part.token_ids)]
            for part, whole in zip(output.outputs, expected.outputs, strict=True)
        )
    mine, theirs = (
        [
            [(part.token_ids, part.text, part.finish_reason) for part in one.outputs],
            one.error and one.error.code,
            len(one.prompt_logprobs or []),
        ]
        for one in (output, expected)
    )
    return mine == theirs


class Traffic:
    """Requests that come, go and take over each other's ids, and what each of them was told."""

    def __init__(self, rig: EngineRig, loads: list[Load]) -> None:
        self._rig = rig
        self._coming = sorted(enumerate(loads), key=lambda item: item[1].arrives_at_step)
        self._aborts: list[tuple[int, str]] = []
        self.holders: dict[str, tuple[Load, list[RequestOutput]]] = {}
        self.ended: list[tuple[Load, list[RequestOutput]]] = []

    @property
    def goes_on(self) -> bool:
        return bool(self._coming) or self._rig.engine.has_unfinished_requests()

    def step(self, step: int) -> None:
        """Let come and go whoever does so before this step, then take the step."""
        while self._coming and self._coming[0][1].arrives_at_step <= step:
            number, load = self._coming.pop(0)
            self._add(str(number), load)
            if load.aborted_after_steps is not None:
                self._aborts.append((step + load.aborted_after_steps, str(number)))
        for name in [name for at, name in self._aborts if at == step and name in self.holders]:
            self._abort(name)
        for output in self._rig.engine.step():
            self._take(output)
        self._rig.engine.check_integrity()

    def _add(self, name: str, load: Load) -> None:
        rig, lora = self._rig, self._rig.loras[ADAPTERS[load.adapter]]
        rig.engine.add_request(name, rig.prompts[load.prompt], rig.params(load.kind), lora)
        self.holders[name] = (load, [])

    def _abort(self, name: str) -> None:
        load, output = self.holders[name][0], self._rig.engine.abort_request(name)
        assert output is not None
        self._take(output)
        if load.takes_over:
            other = replace(load, kind=(load.kind + 1) % len(KINDS), prompt=(load.prompt + 1) % 4)
            self._add(name, other)

    def _take(self, output: RequestOutput) -> None:
        self.holders[output.request_id][1].append(output)
        if output.finished:
            self.ended.append(self.holders.pop(output.request_id))


def check_stream(outputs: list[RequestOutput]) -> None:
    """What was told before the end is the beginning of what was told with it."""
    for part in outputs[-1].outputs:
        told = [one.outputs[0] for one in outputs[:-1] if one.outputs[0].index == part.index]
        assert [token for one in told for token in one.token_ids] == part.token_ids[: len(told)]
        assert part.text.startswith("".join(one.text for one in told))


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    loads=LOADS,
    reload_at=st.sets(st.integers(0, 25), max_size=3),
    pace=st.lists(st.integers(0, 2), min_size=1, max_size=5),
)
def test_every_answer_is_that_of_an_engine_that_does_not_look_ahead(
    rig: EngineRig, loads: list[Load], reload_at: set[int], pace: list[int]
) -> None:
    rig.pace = pace
    rig.reload(0)
    traffic = Traffic(rig, loads)

    step = 0
    while traffic.goes_on:
        if step in reload_at:
            rig.reload(step)
        traffic.step(step)
        step += 1
        assert step < MAX_STEPS

    assert not traffic.holders
    for load, outputs in traffic.ended:
        assert any(agrees(outputs[-1], expected) for expected in rig.allowed(load)), outputs[-1]
        check_stream(outputs)
    assert rig.engine.stats().num_free_kv_blocks == 6
