"""An engine gives requests the defaults of its checkpoint, for what they leave unset and for nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.unit.workers.engine.conftest import PAD_ID, Greedy
from workers.engine import EngineConfig, LLMEngine, LoRARequest, RequestOutput, SamplingParams
from workers.engine.core.sampling_defaults import SamplingDefaults

pytestmark = pytest.mark.numeric

QWEN = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.4}
"""As the makers of an instruct model write them, the penalty larger, so that it shows in random tokens."""
LENGTH = 16


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Llama, whose makers have given it defaults."""
    copy = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("defaults") / "base"))
    (copy / "generation_config.json").write_text(json.dumps(QWEN))
    return copy


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[LLMEngine]:
    with LLMEngine(EngineConfig(model=str(folder), num_threads=1, enable_lora=True)) as engine:
        yield engine


def greedy_params(**settings: Any) -> SamplingParams:
    return SamplingParams(max_tokens=LENGTH, temperature=0.0, ignore_eos=True, **settings)


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_greedy_tokens_are_transformers_and_a_neutral_value_that_is_set_wins(
    engine: LLMEngine, folder: Path, greedy: Greedy, prompts: list[list[int]]
) -> None:
    theirs = LlamaForCausalLM.from_pretrained(folder)
    prompts = prompts[:4]
    unset, neutral = greedy_params(), greedy_params(repetition_penalty=1.0)

    outputs = engine.generate(prompts * 2, [unset] * 4 + [neutral] * 4)

    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": LENGTH, "eos_token_id": None, "pad_token_id": PAD_ID}
        with torch.inference_mode():
            made = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
        expected.append(made[0, len(prompt) :].tolist())
    plain = [greedy(prompt, LENGTH) for prompt in prompts]
    assert expected != plain
    assert tokens(outputs) == expected + plain
    penalties = [output.sampling and output.sampling["repetition_penalty"] for output in outputs]
    assert penalties == [1.4] * 4 + [1.0] * 4


def test_adapters_have_the_defaults_of_their_base(
    engine: LLMEngine, adapters: dict[str, LoRARequest], prompts: list[list[int]]
) -> None:
    asked = [greedy_params(), greedy_params(repetition_penalty=1.4), greedy_params(repetition_penalty=1.0)]

    unset, named, neutral = tokens(engine.generate([prompts[0]] * 3, asked, adapters["everything"]))

    assert unset == named != neutral


def test_what_a_request_leaves_unset_is_told_with_its_output(engine: LLMEngine) -> None:
    outputs = engine.generate(
        [[5, 6]] * 2, [SamplingParams(max_tokens=1), SamplingParams(max_tokens=1, temperature=1.0, top_k=0)]
    )

    unset = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.4}
    unset |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert [output.sampling for output in outputs] == [unset, unset | {"temperature": 1.0, "top_k": 0}]
    assert engine.info.sampling_defaults == SamplingDefaults(0.7, 0.8, 20, 0.0, 1.4)


def test_without_the_file_greedy_stays_greedy(folder: Path, greedy: Greedy, prompts: list[list[int]]) -> None:
    with LLMEngine(EngineConfig(model=str(folder), num_threads=1, generation_config="none")) as engine:
        outputs = engine.generate(prompts[:2], greedy_params())

    assert tokens(outputs) == [greedy(prompt, LENGTH) for prompt in prompts[:2]]
    assert engine.info.sampling_defaults == SamplingDefaults()
