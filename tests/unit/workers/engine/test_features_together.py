"""Where features meet: everything at once on a cache that is too small, and what one leaves for another."""

from __future__ import annotations

import gc
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from multiprocessing import Pipe
from pathlib import Path

import pytest

from tests.polling import eventually
from tests.unit.workers.engine.look_ahead import BOTH
from tests.unit.workers.engine.spoiled import Spoiled
from workers.engine import LLMEngine, LoRAMix, LoRARequest, RequestOutput, SamplingParams
from workers.engine.core.errors import AdapterNotFound, AllSlotsPinned, InvalidParams, InvalidPrompt
from workers.engine.core.lora_request import AnyLoRA
from workers.engine.core.sampling_params import RequestOutputKind
from workers.engine.core.step_input import ForwardInput, SamplingInput
from workers.engine.scheduling.batching import Refusal, Schedule
from workers.engine.serving.child import EngineServer
from workers.engine.serving.executor import InFlightStep, SampledStep
from workers.engine.serving.messages import AddRequest, DropAdapter, PrefetchAdapter, Started, Stop
from workers.engine.structured_output import StructuredOutputsParams

pytestmark = [pytest.mark.numeric, BOTH]

MakeEngine = Callable[..., LLMEngine]
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
ASKED: list[dict[str, object]] = [
    {"logprobs": 2, "prompt_logprobs": 1},
    {"n": 3, "temperature": 0.8, "seed": 5, "top_k": 20},
    {"repetition_penalty": 1.3, "presence_penalty": 0.4, "min_tokens": 9},
    {"stop": ["e", "a"], "include_stop_str_in_output": True},
    {"structured_outputs": StructuredOutputsParams(regex="[a-z]{9,12}x")},
    {"bad_words": ["a"], "logit_bias": {70: 5.0}, "ignore_eos": False},
]


def run(engine: LLMEngine) -> list[RequestOutput]:
    """Step to the end, looking at every block after each step."""
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
        engine.check_integrity()
    return outputs


def told(outputs: list[RequestOutput], request_id: str, index: int) -> tuple[str, list[int]]:
    """What a completion's stream said, put together."""
    parts = [
        part
        for output in outputs
        if output.request_id == request_id and not output.finished
        for part in output.outputs
        if part.index == index
    ]
    return "".join(part.text for part in parts), list(chain.from_iterable(part.token_ids for part in parts))


def test_everything_at_once_answers_as_alone_and_adds_up(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], tmp_path: Path, look_ahead: int
) -> None:
    shutil.copytree(adapters["mlp"].lora_path, tmp_path / "broken")
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"no tensors")
    broken = LoRARequest("broken", 99, str(tmp_path / "broken"))
    everything, mlp = adapters["everything"], adapters["mlp"]
    loras: list[AnyLoRA | None] = [
        None,
        everything,
        replace(mlp, scale=-0.5),
        LoRAMix([(everything, 0.5), (mlp, 0.7)]),
        broken,
    ]
    rng = random.Random(4)
    stem = [rng.randrange(3, 259) for _ in range(50)]
    delta = RequestOutputKind.DELTA
    # Two that begin at once and outgrow the cache together, whenever the loader brings the others' adapters.
    long = replace(GREEDY, max_tokens=60, output_kind=delta)
    asked: dict[str, tuple[list[int], SamplingParams, AnyLoRA | None]] = {
        f"long-{number}": (stem[10 * number : 16], long, None) for number in range(2)
    }
    asked |= {
        f"{place}-{number}": (
            stem[: rng.randint(1, 50)],
            replace(GREEDY, max_tokens=14, output_kind=delta, **one),  # type: ignore[arg-type]  # of many kinds
            lora,
        )
        for place, lora in enumerate(loras)
        for number, one in enumerate(ASKED)
    }
    engine = make_engine(
        enable_lora=True,
        max_loras=2,
        max_cpu_loras=2,
        max_num_seqs=6,
        max_model_len=80,
        max_num_batched_tokens=13,
        num_kv_blocks=7,
    )
    for request_id, (prompt, params, lora) in asked.items():
        engine.add_request(request_id, prompt, params, lora, cache_salt=request_id[-1:])
    seen = run(engine)
    outputs = {output.request_id: output for output in seen if output.finished}
    stats = engine.stats()
    engine.close()

    lonely = make_engine(enable_lora=True, max_model_len=80, max_loras=3, enable_prefix_caching=False)
    for request_id, (prompt, params, lora) in asked.items():
        lonely.add_request(request_id, prompt, params, lora)
        (alone,) = (output for output in run(lonely) if output.finished)
        among = outputs[request_id]
        assert [(one.token_ids, one.text, one.finish_reason) for one in among.outputs] == [
            (one.token_ids, one.text, one.finish_reason) for one in alone.outputs
        ]
        assert (among.error and among.error.code) == (alone.error and alone.error.code)
        assert (among.error is None) == (lora is not broken)
        for one in among.outputs:
            assert told(seen, request_id, one.index) == (one.text, one.token_ids)
    lonely.close()
    metrics = [output.metrics for output in outputs.values()]
    assert sum(one.device_ms for one in metrics) + stats.wasted_ms == pytest.approx(stats.busy_ms)
    assert (stats.wasted_ms > 0) == (look_ahead == 1)
    assert sum(one.num_prompt_tokens for one in metrics) == stats.num_prompt_tokens
    assert sum(one.num_completion_tokens for one in metrics) == stats.num_completion_tokens
    assert stats.num_preemptions > 0
    assert stats.num_free_kv_blocks == 7


def test_a_completion_refused_in_the_step_in_which_another_fails_ends_their_request_once(
    make_engine: MakeEngine,
    adapters: dict[str, LoRARequest],
    monkeypatch: pytest.MonkeyPatch,
    look_ahead: int,
) -> None:
    engine = make_engine(enable_lora=True, max_num_seqs=1)
    engine.add_lora(adapters["mlp"])
    engine.add_request("twins", [5, 6], replace(GREEDY, n=2, temperature=1.0), adapters["mlp"])
    engine.step()
    batcher, executor = engine._parts.batcher, engine._parts.executor
    schedule, sample = batcher.schedule, executor.sample

    def refuse() -> Schedule:
        step, waiting = schedule(), batcher.waiting.popleft()
        return step._replace(refusals=[Refusal(waiting, AdapterNotFound("it is gone"))])

    def fail(step: InFlightStep, sampling: SamplingInput) -> SampledStep:
        return Spoiled(sample(step, sampling))

    monkeypatch.setattr(batcher, "schedule", refuse)
    monkeypatch.setattr(executor, "sample", fail)

    (output,) = engine.step()

    assert [one.finish_reason for one in output.outputs] == ["error", "error"]
    monkeypatch.undo()
    assert run(engine) == []
    stats = engine.stats()
    assert output.metrics.device_ms + stats.wasted_ms == pytest.approx(stats.busy_ms)
    assert (stats.wasted_ms > 0) == (look_ahead == 1)
    assert not engine.has_unfinished_requests()
    engine.check_integrity()
    engine.close()


def test_pinned_adapters_that_fill_the_host_refuse_others_until_they_are_unpinned(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest]
) -> None:
    engine = make_engine(enable_lora=True, max_loras=1, max_cpu_loras=1)
    engine.add_lora(adapters["everything"])
    engine.pin_lora(adapters["everything"].lora_int_id)

    (refused,) = engine.generate([[5, 6]], GREEDY, adapters["mlp"])
    engine.unpin_lora(adapters["everything"].lora_int_id)
    (served,) = engine.generate([[5, 6]], GREEDY, adapters["mlp"])

    assert refused.error is not None
    assert refused.error.code == AllSlotsPinned.code
    assert "'mlp' has no place on the host" in refused.error.message
    assert (served.error, len(served.outputs[0].token_ids)) == (None, 6)
    engine.close()


def test_a_pin_can_be_taken_off_though_the_files_have_changed(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], tmp_path: Path
) -> None:
    engine = make_engine(enable_lora=True, max_loras=1, max_cpu_loras=2)
    folder = tmp_path / "changing"
    shutil.copytree(adapters["everything"].lora_path, folder)
    changing = LoRARequest("changing", 77, str(folder))
    engine.add_lora(changing)
    engine.pin_lora(77)
    shutil.rmtree(folder)
    shutil.copytree(adapters["mlp"].lora_path, folder)

    engine.add_lora(changing)

    assert engine.unpin_lora(77)
    (served,) = engine.generate([[5, 6]], GREEDY, adapters["last-layer"])
    assert served.error is None
    engine.close()


def test_a_bad_request_among_others_leaves_no_load_and_no_sequence(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest]
) -> None:
    engine = make_engine(enable_lora=True)

    with pytest.raises(InvalidPrompt):
        engine.generate([[5], []], GREEDY, adapters["mlp"])
    with pytest.raises(InvalidParams, match="cache_salt is b'x'; give a string or None"):
        engine.add_request("salted", [5], GREEDY, cache_salt=b"x")  # type: ignore[arg-type]

    assert not engine.has_unfinished_requests()
    adapters_held = engine.stats().adapters
    assert adapters_held is not None
    assert (adapters_held.num_loading, adapters_held.loads) == (0, 0)
    engine.close()


def test_generate_takes_ids_that_nobody_has(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_request("generate-0", [5, 6], GREEDY)

    (generated,) = engine.generate([[5, 6]], GREEDY)

    assert generated.request_id == "generate-1"
    assert [output.request_id for output in run(engine)] == ["generate-0"]
    engine.close()


def test_an_engine_that_is_forgotten_takes_its_grammar_thread_along(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.generate([[5]], replace(GREEDY, structured_outputs=StructuredOutputsParams(regex="[a-c]{3}")))
    (thread,) = (one for one in threading.enumerate() if one.name == "grammars")

    del engine
    gc.collect()

    eventually(lambda: not thread.is_alive(), what="the end of the thread and of its child")


def test_commands_about_adapters_do_not_end_an_engine_without_lora(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest]
) -> None:
    engine = make_engine()
    ours, theirs = Pipe()
    ours.send((PrefetchAdapter(adapters["mlp"]), DropAdapter(adapters["mlp"]), Stop()))

    EngineServer(engine, theirs).run()

    assert not ours.poll(), "nothing has changed, so there is nothing to tell"
    engine.close()


def test_that_a_request_has_started_is_told_before_its_first_forward_pass(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    ours, theirs = Pipe()
    server = EngineServer(engine, theirs)
    forward, was_told = engine._parts.executor.forward, []

    def watch(step: ForwardInput) -> InFlightStep:
        was_told.append(ours.poll())
        return forward(step)

    monkeypatch.setattr(engine._parts.executor, "forward", watch)
    server._add(AddRequest("one", [5, 6], None, GREEDY, None))
    engine.step()

    assert was_told == [True]
    assert ours.recv().started == (Started("one"),)
    engine.close()
