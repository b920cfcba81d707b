"""Answers that begin with other requests' KV blocks are the answers that were computed from the start."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.cpu import library
from kernels.lora.segments import Segments
from tests.unit.products import assert_same_logits
from tests.unit.workers.engine.look_ahead import BOTH
from tests.unit.workers.engine.spoiled import Spoiled
from workers.engine import LLMEngine, LoRARequest, RequestOutput, SamplingParams
from workers.engine.core.step_input import ForwardInput, SamplingInput
from workers.engine.model.decoder import HiddenStates
from workers.engine.serving.child import EngineServer
from workers.engine.serving.executor import Executor, InFlightStep, SampledStep
from workers.engine.serving.messages import AddRequest

pytestmark = [pytest.mark.numeric, BOTH]

MakeEngine = Callable[..., LLMEngine]
Greedy = Callable[[list[int], int], list[int]]
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


@pytest.fixture
def stem() -> list[int]:
    """What several prompts begin with: three blocks and a bit."""
    return torch.randint(3, 259, (50,), generator=torch.Generator().manual_seed(5)).tolist()


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def hits(outputs: list[RequestOutput]) -> list[int]:
    return [output.metrics.num_cached_tokens for output in outputs]


def test_prompts_with_a_common_stem_give_the_tokens_they_give_alone(
    make_engine: MakeEngine, stem: list[int], greedy: Greedy
) -> None:
    engine = make_engine()
    prompts = [stem + tail for tail in ([7], [8, 9], list(range(10, 45)))]
    engine.generate(stem, GREEDY)

    outputs = engine.generate(prompts, GREEDY)

    assert hits(outputs) == [48, 48, 48]
    assert tokens(outputs) == [greedy(prompt, 12) for prompt in prompts]
    stats = engine.stats()
    assert (stats.num_prefix_hit_tokens, stats.num_prefix_query_tokens) == (144, 50 + sum(map(len, prompts)))
    assert stats.num_cached_kv_blocks > 0
    assert stats.num_free_kv_blocks == engine.info.num_kv_blocks == engine.capacity().free_kv_blocks
    engine.check_integrity()


def test_a_next_turn_begins_with_the_last_answer_s_blocks(
    make_engine: MakeEngine, stem: list[int], greedy: Greedy
) -> None:
    engine = make_engine()
    long = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    answer = engine.generate(stem, long)[0].outputs[0].token_ids
    second_turn = [*stem, *answer, 70, 71, 72]

    output = engine.generate(second_turn, GREEDY)

    assert hits(output) == [80]  # 50 + 40 tokens, the last of which was never computed: five blocks
    assert tokens(output) == [greedy(second_turn, 12)]


def test_prompts_that_begin_alike_and_come_together_compute_their_stem_once(
    make_engine: MakeEngine, stem: list[int], greedy: Greedy
) -> None:
    engine = make_engine(max_num_batched_tokens=32)
    prompts = [[*stem, *stem[:30], tail] for tail in (7, 8, 9)]

    outputs = engine.generate(prompts, GREEDY)

    assert engine.stats().num_prefix_hit_tokens == 2 * 80
    assert tokens(outputs) == [greedy(prompt, 12) for prompt in prompts]
    engine.check_integrity()


def test_several_completions_compute_their_prompt_once(make_engine: MakeEngine, stem: list[int]) -> None:
    three = SamplingParams(n=3, temperature=1.0, seed=4, max_tokens=6, ignore_eos=True)
    prompt = [*stem, *stem[:30], 7]
    engine, without = make_engine(), make_engine(enable_prefix_caching=False)

    completions = engine.generate(prompt, three)[0].outputs

    assert engine.stats().num_prefix_hit_tokens == 2 * 80
    assert completions == without.generate(prompt, three)[0].outputs


def test_with_caching_off_nothing_is_kept(make_engine: MakeEngine, stem: list[int], greedy: Greedy) -> None:
    engine = make_engine(enable_prefix_caching=False)

    outputs = engine.generate(stem, GREEDY) + engine.generate(stem, GREEDY)

    assert tokens(outputs) == [greedy(stem, 12)] * 2
    assert hits(outputs) == [0, 0]
    assert engine.stats().num_cached_kv_blocks == engine.stats().num_prefix_query_tokens == 0


def test_a_preempted_sequence_finds_its_own_blocks_again(
    make_engine: MakeEngine, prompts: list[list[int]], greedy: Greedy
) -> None:
    engine = make_engine(max_model_len=128, num_kv_blocks=12)
    long = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)

    outputs = engine.generate(prompts, long)

    assert engine.stats().num_preemptions > 0
    assert engine.stats().num_prefix_hit_tokens > 0
    assert hits(outputs) == [0] * len(prompts)  # none had anything when it first came
    assert tokens(outputs) == [greedy(prompt, 24) for prompt in prompts]


class Recorder:
    """Keeps the logits of every sampled row of an engine, in the order in which they were computed."""

    def __init__(self, engine: LLMEngine) -> None:
        decoder = engine._parts.executor._decoder  # type: ignore[attr-defined]  # that of the local executor
        self._make, decoder.logits = decoder.logits, self._record
        self.logits: list[Tensor] = []

    def _record(self, hidden: HiddenStates, rows: Tensor, segments: Segments | None) -> Tensor:
        logits = self._make(hidden, rows, segments)
        self.logits.append(logits[:1].clone())  # one request at a time: the rest is padding
        return logits


def logits_of(engine: LLMEngine, prompt: list[int]) -> Tensor:
    recorder = Recorder(engine)
    engine.generate(prompt, GREEDY)
    return torch.cat(recorder.logits)


def cold_and_warm(make_engine: MakeEngine, stem: list[int], dtype: str) -> tuple[Tensor, Tensor]:
    """Return the logits of one request computed from the start, and computed behind a cached prefix."""
    prompt = [*stem, 7, 8, 9, 10]
    cold, warm = make_engine(dtype=dtype), make_engine(dtype=dtype)
    warm.generate(stem, GREEDY)
    logits = logits_of(cold, prompt), logits_of(warm, prompt)
    assert warm.stats().num_prefix_hit_tokens == 48
    return logits


def test_bfloat16_logits_behind_a_hit_are_bit_identical_with_compiled_kernels(
    make_engine: MakeEngine, stem: list[int]
) -> None:
    is_lowered = library.LEVEL_VARIABLE in os.environ
    assert library.level() != "torch" or is_lowered, "run `python -m kernels.cpu.build`"

    from_the_start, behind_a_hit = cold_and_warm(make_engine, stem, "bfloat16")

    assert_same_logits(from_the_start, behind_a_hit, "bfloat16")


@pytest.mark.parametrize("level", library.available_levels())
def test_float32_logits_behind_a_hit_are_equal_within_rounding(
    make_engine: MakeEngine, stem: list[int], level: library.Level
) -> None:
    with library.use_level(level):
        from_the_start, behind_a_hit = cold_and_warm(make_engine, stem, "float32")

    torch.testing.assert_close(from_the_start, behind_a_hit, atol=1e-4, rtol=0)


def test_behaviour_22_an_adapter_reloaded_in_place_finds_nothing_of_its_old_files(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], stem: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    request = LoRARequest("tuned", 9, str(folder))
    engine = make_engine(enable_lora=True)
    expected = [engine.generate(stem, GREEDY, adapters[name])[0] for name in ("mlp", "everything")]

    shutil.copytree(adapters["mlp"].lora_path, folder)
    before = engine.generate(stem, GREEDY, request)[0]
    shutil.rmtree(folder)
    shutil.copytree(adapters["everything"].lora_path, folder)
    after = engine.generate(stem, GREEDY, request)[0]
    fresh = make_engine(enable_lora=True)

    assert tokens([before, after]) == tokens(expected)
    assert hits([before, after]) == [48, 48]  # each found the blocks of its own files, under the other name
    assert tokens(fresh.generate(stem, GREEDY, request)) == tokens([after])
    engine.close()
    fresh.close()


def test_behaviour_23_base_and_adapters_never_share_keys_and_values(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], stem: list[int], tmp_path: Path
) -> None:
    # One name and one id for two adapters, one adapter under two names, and the base: all over one prompt.
    namesake = LoRARequest("attention", adapters["attention"].lora_int_id, adapters["mlp"].lora_path)
    alias = LoRARequest("alias", 77, adapters["attention"].lora_path)
    order = [None, adapters["attention"], namesake, alias, adapters["last-layer"], None]
    engine = make_engine(enable_lora=True)

    outputs = [engine.generate(stem, GREEDY, lora)[0] for lora in order]

    # "last-layer" has only o_proj and down_proj there: its keys and values are the base's.
    assert hits(outputs) == [0, 0, 0, 48, 48, 48]
    for output, lora in zip(outputs, order, strict=True):
        alone = make_engine(enable_lora=True, enable_prefix_caching=False)
        assert output.outputs[0].token_ids == tokens(alone.generate(stem, GREEDY, lora))[0]
        alone.close()
    engine.close()


def test_salted_requests_share_with_their_own_salt_only(make_engine: MakeEngine, stem: list[int]) -> None:
    engine = make_engine()
    found = []
    for number, salt in enumerate(["one", "two", None, "one"]):
        engine.add_request(str(number), stem, GREEDY, cache_salt=salt)
        while engine.has_unfinished_requests():
            found += hits(engine.step())

    assert found == [0, 0, 0, 48]


def test_a_salt_comes_with_the_command_of_another_process(make_engine: MakeEngine, stem: list[int]) -> None:
    ours, theirs = Pipe()
    engine = make_engine()
    server = EngineServer(engine, theirs)

    found = []
    for number, salt in enumerate(["one", "two", "one"]):
        server._add(AddRequest(str(number), stem, None, GREEDY, None, salt))
        while engine.has_unfinished_requests():
            found += hits(engine.step())

    assert found == [0, 0, 48]
    ours.close()
    theirs.close()


def test_a_request_that_fails_on_nan_leaves_nothing_in_the_cache(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], stem: list[int], tmp_path: Path, greedy: Greedy
) -> None:
    engine = make_engine(enable_lora=True, max_num_batched_tokens=32)
    bad = copy_with_nan(adapters["everything"], tmp_path / "nan")

    outputs = engine.generate([stem, stem], GREEDY, [bad, None])

    assert outputs[0].error is not None
    assert engine.generate(stem, GREEDY, bad)[0].metrics.num_cached_tokens == 0
    assert tokens(engine.generate(stem, GREEDY)) == tokens(outputs[1:]) == [greedy(stem, 12)]
    engine.check_integrity()
    engine.close()


class Spoiler:
    """An executor whose logits are not finite from some step on."""

    def __init__(self, inner: Executor, num_sound_steps: int) -> None:
        self._inner = inner
        self._num_sound_steps = num_sound_steps
        self.look_ahead = inner.look_ahead
        self.num_replayed_steps = inner.num_replayed_steps

    def forward(self, step: ForwardInput) -> InFlightStep:
        return self._inner.forward(step)

    def sample(self, step: InFlightStep, sampling: SamplingInput) -> SampledStep:
        sampled = self._inner.sample(step, sampling)
        self._num_sound_steps -= 1
        return sampled if self._num_sound_steps >= 0 else Spoiled(sampled)


def test_a_request_that_fails_late_takes_back_its_own_blocks_and_leaves_those_it_found(
    make_engine: MakeEngine, stem: list[int], greedy: Greedy
) -> None:
    engine = make_engine()
    engine.generate(stem[:20], replace(GREEDY, max_tokens=1))
    sound = engine._parts.executor
    engine._parts = engine._parts._replace(executor=Spoiler(sound, num_sound_steps=3))

    failed = engine.generate(stem, GREEDY)
    engine._parts = engine._parts._replace(executor=sound)
    again = engine.generate(stem, GREEDY)

    assert failed[0].error is not None
    assert tokens(failed) == [greedy(stem, 3)]
    assert hits(failed) == hits(again) == [16]
    assert tokens(again) == [greedy(stem, 12)]
    engine.check_integrity()


def copy_with_nan(request: LoRARequest, folder: Path) -> LoRARequest:
    shutil.copytree(request.lora_path, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    first = next(name for name in sorted(weights) if "k_proj.lora_B" in name)
    weights[first][0, 0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors")
    return LoRARequest("nan", 99, str(folder))
