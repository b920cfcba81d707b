"""The whole engine by Triton kernels, as on a GPU: launched ahead, and adapters copied to an arena."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from benchmarks.gpu.interpreter import unchecked_integers
from examples.quantized_copy import write_gptq
from examples.tiny.recipe import ADAPTERS_DIR, BASE_DIR
from examples.tiny.tasks import TASKS, prompt, sample_words
from kernels.registry import Kernels, build
from tests.unit.workers.engine.loader_pool import LoaderPool, shared_loaders
from tests.unit.workers.engine.logit_tap import LogitTap
from tests.unit.workers.engine.model.family_cases import CASES
from tests.unit.workers.engine.peft_bases import make_base, save_base, train
from workers.engine import (
    EngineConfig,
    LLMEngine,
    LoRAMix,
    LoRARequest,
    SamplingParams,
    StructuredOutputsParams,
)
from workers.engine.scheduling import step_layout
from workers.engine.scheduling.step_layout import StepLayout
from workers.engine.serving import assembly, device

NUM_ADAPTERS, NUM_WORDS, MOST_LETTERS = 8, 2, 3
LORAS = {
    name: LoRARequest(name, number, str(ADAPTERS_DIR / name)) for number, name in enumerate(TASKS, start=1)
}
EVERYTHING = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "dora": {"r": 5, "lora_alpha": 9, "target_modules": EVERYTHING, "use_dora": True},
    "bias": {"r": 3, "target_modules": ["q_proj", "up_proj", "down_proj"], "lora_bias": True},
    "vocabulary": {"r": 7, "target_modules": ["v_proj", "embed_tokens", "lm_head"]},
    "saved": {"r": 2, "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
}
NUM_LINEAR_WEIGHTS = 2 * (32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 48)  # of `make_base`


@pytest.fixture(scope="module", autouse=True)
def loader_processes() -> Iterator[LoaderPool]:
    with shared_loaders() as pool:
        yield pool


@pytest.fixture(scope="module", autouse=True)
def integers() -> Iterator[None]:
    """Kernels' own tests, in the other files, check that no integer overflows."""
    with unchecked_integers():
        yield


def tiny_engine(**settings: Any) -> LLMEngine:
    config = {"enable_lora": True, "max_loras": 3, "max_cpu_loras": 9, "num_threads": 1, **settings}
    return LLMEngine(EngineConfig(model=str(BASE_DIR), **config))


def answer(engine: LLMEngine, words: list[str], names: list[str], num_tokens: int) -> list[str]:
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0)
    loras = [LORAS[name] for name in names]
    outputs = engine.generate([prompt(word) for word in words], params, lora_request=loras, use_tqdm=False)
    return [output.outputs[0].text for output in outputs]


def short_words(name: str, count: int) -> list[str]:
    words = sample_words(name, "held_out", 40 * count, seed=11)
    return list(islice((word for word in words if len(word) <= MOST_LETTERS), count))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what an engine calls of its kernels, which are those of the triton level."""
    counted: Counter[str] = Counter()

    def counting(*arguments: Any, **options: Any) -> Kernels:
        kernels = build(*arguments, **options)
        wrapped: dict[str, Any] = {
            field.name: _counted(counted, field.name, getattr(kernels, field.name))
            for field in fields(kernels)
            if callable(getattr(kernels, field.name))
        }
        return replace(kernels, **wrapped)

    monkeypatch.setattr(device, "build", counting)
    return counted


def _counted(counted: Counter[str], name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        counted[name] += 1
        return kernel(*arguments, **options)

    return call


def test_questions_to_eight_adapters_on_three_slots_are_answered_right(launches: Counter[str]) -> None:
    names = list(TASKS)[:NUM_ADAPTERS]
    asked = [(word, name) for name in names for word in short_words(name, NUM_WORDS)]
    words, adapters = map(list, zip(*asked, strict=True))

    with tiny_engine(kernels="triton", max_num_seqs=24) as engine:
        for name in names:  # whoever is read later would have steps of its own
            engine.add_lora(LORAS[name])
        texts = answer(engine, words, adapters, 2 * MOST_LETTERS + 2)
        stats = engine.stats()
        engine.check_integrity()

    wrong = [
        (word, name, text)
        for word, name, text in zip(words, adapters, texts, strict=True)
        if text != TASKS[name].answer(word)
    ]
    assert len(asked) == NUM_ADAPTERS * NUM_WORDS
    assert wrong == []
    assert stats.adapters is None or stats.adapters.slot_evictions >= NUM_ADAPTERS - 3
    assert all(launches[name] for name in ("add_rms_norm", "swiglu", "paged_attention", "lora_add")), launches


def test_an_engine_whose_lora_gives_zeros_answers_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Kernels:
        return replace(build(*arguments, **options), lora_add=lambda out, *_: out.zero_())

    word = short_words("upper", 1)
    monkeypatch.setattr(device, "build", broken)
    with tiny_engine(kernels="triton") as engine:
        texts = answer(engine, word, ["upper"], MOST_LETTERS + 2)

    assert texts != [TASKS["upper"].answer(word[0])]


def test_steps_filled_up_as_for_a_card_are_answered_as_those_that_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = assembly._layout

    def filled(*arguments: Any) -> StepLayout:
        return replace(make(*arguments), is_filled=True)

    monkeypatch.setattr(assembly, "_layout", filled)
    monkeypatch.setattr(step_layout, "MIXED_BUCKETS", (16,))
    names = ["upper", "reverse"]
    words = [short_words(name, 1)[0] for name in names]
    with tiny_engine(kernels="triton", max_num_seqs=2, max_model_len=32) as engine:
        texts = answer(engine, words, names, MOST_LETTERS + 2)

    assert texts == [TASKS[name].answer(word) for word, name in zip(words, names, strict=True)]


@pytest.mark.parametrize("family", ["llama-with-wide-heads", "qwen3", "gemma2"])
def test_adapters_of_every_kind_give_the_logits_that_the_cpus_kernels_give(
    family: str, tmp_path: Path
) -> None:
    base = CASES[family]()
    requests: list[Any] = []
    for number, (name, options) in enumerate(KINDS.items(), start=1):
        path = train(base, LoraConfig(task_type="CAUSAL_LM", **options), tmp_path / name, seed=number)
        requests.append(LoRARequest(name, number, str(path)))
    mix = LoRAMix([(requests[1], 0.7), (requests[2], -0.4)])
    requests += [replace(requests[0], scale=0.5), mix, None]
    folder = save_base(base, tmp_path / "base")
    prompts = [[3 + (5 * at + row) % 100 for at in range(1 + row % 3)] for row in range(len(requests))]
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)

    seen = []
    for kernels in (None, "triton"):
        settings: dict[str, Any] = {
            "enable_lora": True,
            "max_loras": 4,
            "max_lora_rank": 16,
            "max_model_len": 32,
        }
        with LLMEngine(EngineConfig(model=str(folder), kernels=kernels, num_threads=1, **settings)) as engine:
            tap = LogitTap(engine)
            outputs = engine.generate(prompts, params, lora_request=requests, use_tqdm=False)
            seen.append([(one.outputs[0].token_ids, tap.of(one.request_id)) for one in outputs])

    for (expected_ids, expected), (token_ids, logits) in zip(*seen, strict=True):
        assert (logits - expected).abs().max() < 1e-4
        assert token_ids == expected_ids


@pytest.mark.parametrize("coding", ["bitsandbytes", "GPTQ by importance"])
def test_quantised_bases_with_adapters_give_the_logits_that_the_cpus_kernels_give(
    coding: str, tmp_path: Path
) -> None:
    base = make_base("biased")
    folder, coded = save_base(base, tmp_path / "plain"), tmp_path / "coded"
    requests: list[LoRARequest | None] = [None]
    for number, kind in enumerate(("dora", "bias"), start=1):
        path = train(base, LoraConfig(task_type="CAUSAL_LM", **KINDS[kind]), tmp_path / kind, seed=number)
        requests.append(LoRARequest(kind, number, str(path)))
    in_flight: dict[str, Any] = {"quantization": coding}
    if coding.startswith("GPTQ"):
        write_gptq(folder, coded, group_size=16, desc_act=True)
        folder, in_flight = coded, {}
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)

    seen = []
    for kernels in (None, "triton"):
        config = EngineConfig(
            model=str(folder), kernels=kernels, num_threads=1, enable_lora=True, max_model_len=32, **in_flight
        )
        with LLMEngine(config) as engine:
            tap = LogitTap(engine)
            outputs = engine.generate([[3, 8, 13], [5], [7, 9]], params, requests, use_tqdm=False)
            held = engine.info.linear_bytes
            seen.append([(one.outputs[0].token_ids, tap.of(one.request_id)) for one in outputs])

    assert held < 0.5 * 4 * NUM_LINEAR_WEIGHTS
    for (expected_ids, expected), (token_ids, logits) in zip(*seen, strict=True):
        assert (logits - expected).abs().max() < 1e-4
        assert token_ids == expected_ids


def test_what_requests_ask_for_is_done_as_by_the_cpus_kernels() -> None:
    """Grammars, penalties, seeds, log-probabilities, several completions, chunks, preemption, prefixes."""
    asked: list[tuple[list[int], SamplingParams]] = [
        ([5, 9, 11, 6], SamplingParams(max_tokens=4, temperature=0.0, prompt_logprobs=2, logprobs=2)),
        ([5, 9, 11, 6], SamplingParams(max_tokens=4, temperature=1.3, seed=4, n=2)),
        ([7, 8], SamplingParams(max_tokens=4, temperature=0.8, top_k=7, top_p=0.8, min_p=0.02, seed=5)),
        (
            [7, 8, 9],
            SamplingParams(max_tokens=4, temperature=0.0, repetition_penalty=1.4, presence_penalty=0.5),
        ),
        (
            [12, 13],
            SamplingParams(
                max_tokens=6,
                temperature=0.0,
                structured_outputs=StructuredOutputsParams(choice=["yes", "no"]),
            ),
        ),
        ([20 + at % 60 for at in range(26)], SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)),
        (
            [20 + at % 60 for at in range(26)],
            SamplingParams(max_tokens=2, temperature=0.0, logit_bias={30: 50}),
        ),
    ]
    prompts, params = map(list, zip(*asked, strict=True))
    loras = [None, LORAS["upper"], LORAS["reverse"], LORAS["upper"], LORAS["upper"], None, LORAS["sort"]]

    seen = []
    for kernels in (None, "triton"):
        limits = {"num_kv_blocks": 7, "max_model_len": 96, "max_num_batched_tokens": 16, "max_num_seqs": 6}
        with tiny_engine(kernels=kernels, **limits) as engine:
            outputs = engine.generate(prompts, params, lora_request=loras, use_tqdm=False)
            engine.check_integrity()
        seen.append(
            [
                (
                    one.token_ids,
                    one.finish_reason,
                    one.text,
                    [sorted(at) for at in one.logprobs or ()],
                )
                for output in outputs
                for one in output.outputs
            ]
        )

    assert seen[0] == seen[1]
