"""A model with experts by the kernels of a card, adapters on every expert, against the CPU's engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.unit.workers.engine.expert_adapters import save_adapter
from tests.unit.workers.engine.loader_pool import LoaderPool, shared_loaders
from tests.unit.workers.engine.logit_tap import LogitTap
from tests.unit.workers.engine.peft_bases import SHAPE, save_base, train
from workers.engine import EngineConfig, LLMEngine, LoRAMix, LoRARequest, SamplingParams
from workers.engine.lora import describe_base
from workers.engine.scheduling import step_layout
from workers.engine.serving import assembly

SPARSE = SHAPE | {"num_hidden_layers": 1, "head_dim": 16, "norm_topk_prob": True}
SPARSE |= {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT_OSS = SHAPE | {"num_hidden_layers": 1, "head_dim": 16, "intermediate_size": 16, "sliding_window": 4}
GPT_OSS |= {"num_local_experts": 3, "num_experts_per_tok": 2, "swiglu_limit": 1.0}
ADAPTERS: dict[str, dict[str, Any]] = {
    "experts": {"targets": ("gate_proj", "up_proj", "down_proj", "gate"), "rank": 4},
    "some": {"targets": ("q_proj", "down_proj"), "rank": 5},
    "dora": {"targets": ("up_proj", "down_proj"), "rank": 3, "use_dora": True},
}


# Rows that fill a step up hold whatever their memory held.
pytestmark = [
    pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def loader_processes() -> Iterator[LoaderPool]:
    with shared_loaders() as pool:
        yield pool


@pytest.fixture(autouse=True)
def filled_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are filled up as for a card, with rows that no expert is read for."""
    make = assembly._layout
    monkeypatch.setattr(assembly, "_layout", lambda *arguments: replace(make(*arguments), is_filled=True))
    monkeypatch.setattr(step_layout, "MIXED_BUCKETS", (16,))


def test_a_mixed_batch_of_adapters_on_experts_gives_the_logits_of_the_cpus_kernels(tmp_path: Path) -> None:
    torch.manual_seed(7)
    folder = save_base(Qwen3MoeForCausalLM(Qwen3MoeConfig(**SPARSE)).eval(), tmp_path / "base")
    requests: list[Any] = []
    for number, (name, given) in enumerate(ADAPTERS.items(), start=1):
        save_adapter(describe_base(folder), path=tmp_path / name, **given)
        requests.append(LoRARequest(name, number, str(tmp_path / name)))
    mix = LoRAMix([(requests[0], 0.7), (requests[1], -0.4)])
    requests += [replace(requests[0], scale=0.5), mix, None]

    _assert_same_logits(folder, requests, most_tokens=2)


def test_sinks_biases_and_clamped_gates_give_the_logits_of_the_cpus_kernels(tmp_path: Path) -> None:
    torch.manual_seed(7)
    base = GptOssForCausalLM(GptOssConfig(**GPT_OSS)).eval()
    for name, parameter in base.named_parameters():
        if name.endswith(("bias", "sinks")):
            parameter.data += 0.5 * torch.randn_like(parameter)
    folder = save_base(base, tmp_path / "base")
    config = LoraConfig(
        r=3,
        target_modules="all-linear",
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.router.weight"],
    )
    path = train(base, config, tmp_path / "experts", seed=1)

    _assert_same_logits(folder, [None, LoRARequest("experts", 1, str(path))], most_tokens=6)


def _assert_same_logits(folder: Path, requests: list[Any], *, most_tokens: int) -> None:
    """Answer prompts of 1 to so many tokens in turn."""
    prompts = [
        [3 + (5 * at + row) % 100 for at in range(most_tokens if row % 2 else 1)]
        for row in range(len(requests))
    ]
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    seen = []
    limits: dict[str, Any] = {
        "max_loras": 3,
        "max_lora_rank": 16,
        "max_model_len": 32,
        "num_threads": 1,
        "max_num_seqs": 8,
    }
    for kernels in (None, "triton"):
        settings = EngineConfig(model=str(folder), kernels=kernels, enable_lora=True, **limits)
        with LLMEngine(settings) as engine:
            tap = LogitTap(engine)
            outputs = engine.generate(prompts, params, lora_request=requests, use_tqdm=False)
            seen.append([(one.outputs[0].token_ids, tap.of(one.request_id)) for one in outputs])
            assert engine.info.linear_bytes > 0

    for (expected_ids, expected), (token_ids, logits) in zip(*seen, strict=True):
        assert (logits - expected).abs().max() < 1e-4
        assert token_ids == expected_ids
