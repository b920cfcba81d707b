"""With `batch_invariant` a request has the same bits alone and in any company, at every level."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kernels.cpu import library
from tests.emulated import products
from tests.emulated.library import at_level
from tests.unit.workers.engine.conftest import save_tokenizer
from tests.unit.workers.engine.model.family_cases import make_model
from workers.engine import EngineConfig, LLMEngine, LoRAMix, LoRARequest, RequestOutput, SamplingParams
from workers.engine.core.lora_request import AnyLoRA

pytestmark = pytest.mark.numeric

MakeEngine = Callable[..., LLMEngine]
LIMITS = {"max_num_seqs": 6, "max_num_batched_tokens": 24, "max_model_len": 64, "num_kv_blocks": 6}
"""Prompts are read in chunks, and sequences preempted."""
STEM = random.Random(1).choices(range(3, 90), k=60)
GREEDY = SamplingParams(max_tokens=19, temperature=0.0, ignore_eos=True)
PARAMS = (
    replace(GREEDY, logprobs=2, prompt_logprobs=1),
    replace(GREEDY, temperature=0.9, seed=4, logprobs=1),
    replace(GREEDY, temperature=1.3, top_k=20, top_p=0.9, min_p=0.01, seed=5),
    replace(GREEDY, repetition_penalty=1.3, frequency_penalty=0.4, logprobs=0),
)
# Level, dtype, whether torch's products depend on the number of rows, how weights are quantised.
ENGINES = [
    ("torch", "float32", False, None),
    ("torch", "bfloat16", True, "bitsandbytes"),
    ("avx2", "float32", True, None),
    ("avx2", "bfloat16", False, "int8"),
    ("avx512_bf16", "float32", False, "int8"),
    ("avx512_bf16", "bfloat16", True, None),
]


class Request(NamedTuple):
    prompt: list[int]
    params: SamplingParams
    lora: AnyLoRA | None


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[library.Level, bool], None]]:
    """Have kernels of a level, and if asked to products like a processor's with AMX, until the test ends."""
    with ExitStack() as stack:

        def use(level: library.Level, like_amx: bool) -> None:
            stack.enter_context(at_level(level))
            stack.enter_context(library.use_level(level))
            if like_amx:
                stack.enter_context(products.whole_run())

        yield use


def bits(output: RequestOutput) -> tuple[Any, ...]:
    """All that a request was told, its floats as they are."""
    (one,) = output.outputs
    assert output.error is None
    return one.token_ids, one.text, one.logprobs, output.prompt_logprobs


def run(engine: LLMEngine, requests: dict[str, Request], rng: random.Random) -> dict[str, tuple[Any, ...]]:
    """Serve requests that arrive one after the other, some steps apart; returns each one's bits."""
    told: dict[str, tuple[Any, ...]] = {}
    waiting = list(requests)
    while waiting or engine.has_unfinished_requests():
        for _ in range(min(len(waiting), rng.choice((0, 2, 6)))):
            name = waiting.pop()
            engine.add_request(name, *requests[name])
        told |= {output.request_id: bits(output) for output in engine.step() if output.finished}
    return told


def keeps_bits(engine: LLMEngine, loras: list[AnyLoRA | None]) -> bool:
    """Whether requests have the bits that they have alone in a random mix of all."""
    requests = {
        f"{number}": Request(STEM[number % 3 :][:length], PARAMS[number % 4], loras[number % len(loras)])
        for number, length in enumerate((31, 14, 15, 15, 15, 15, 33))
    }
    alone = {name: run(engine, {name: one}, random.Random(0))[name] for name, one in requests.items()}
    rng = random.Random(3)
    names = rng.sample(list(requests), len(requests))
    mixed = run(engine, {name: requests[name] for name in names}, rng)
    stats = engine.stats()
    assert stats.num_preemptions
    assert stats.num_prefix_hit_tokens
    engine.close()
    return mixed == alone


@pytest.mark.parametrize(("level", "dtype", "like_amx", "quantization"), ENGINES)
def test_a_request_has_the_same_bits_alone_and_in_any_company(
    make_engine: MakeEngine,
    adapters: dict[str, LoRARequest],
    use: Callable[[library.Level, bool], None],
    level: library.Level,
    dtype: str,
    like_amx: bool,
    quantization: str | None,
) -> None:
    use(level, like_amx)
    chosen = [adapters[name] for name in ("attention", "mlp", "one-module", "everything")]
    engine = make_engine(
        batch_invariant=True, dtype=dtype, quantization=quantization, enable_lora=True, **LIMITS
    )
    for adapter in chosen:
        engine.add_lora(adapter)

    mix = LoRAMix([(chosen[1], 0.5), (chosen[3], 0.7)])
    assert keeps_bits(engine, [None, *chosen, mix])


@pytest.mark.parametrize(
    ("family", "level", "like_amx"),
    [("mixtral", "avx2", True), ("gemma2", "avx2", True), ("gpt-oss", "torch", False)],
)
def test_experts_caps_sinks_and_windows_keep_the_bits_too(
    tmp_path: Path,
    use: Callable[[library.Level, bool], None],
    family: str,
    level: library.Level,
    like_amx: bool,
) -> None:
    use(level, like_amx)
    make_model(family).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    config = EngineConfig(str(tmp_path), batch_invariant=True, num_threads=1, **LIMITS)  # type: ignore[arg-type]

    assert keeps_bits(LLMEngine(config), [None])


def test_without_it_company_does_change_bits_if_products_depend_on_the_number_of_rows(
    make_engine: MakeEngine, use: Callable[[library.Level, bool], None]
) -> None:
    use(library.level(), True)

    assert not keeps_bits(make_engine(**LIMITS), [None])


def test_two_engines_give_the_same_bits_whatever_they_served_before(
    make_engine: MakeEngine, use: Callable[[library.Level, bool], None]
) -> None:
    use(library.level(), True)
    request = {"one": Request(STEM[:50], PARAMS[0], None)}
    fresh = make_engine(batch_invariant=True, **LIMITS)
    busy = make_engine(batch_invariant=True, enable_prefix_caching=False, **LIMITS | {"num_kv_blocks": 40})
    run(busy, {str(number): Request(STEM[number:50], GREEDY, None) for number in range(9)}, random.Random(2))

    assert run(fresh, request, random.Random(0)) == run(busy, request, random.Random(0))
