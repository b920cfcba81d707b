"""Adapters as people have them, in mixed batches, against transformers with PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig

from tests.unit.workers.engine.logit_tap import LogitTap
from tests.unit.workers.engine.peft_bases import Oracle, make_base, save_base, train
from workers.engine import EngineConfig, LLMEngine, LoRARequest, SamplingParams

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EVERYTHING = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]

# What every base carries beside its own kinds: a plain adapter, and bias and DoRA upon linear layers.
COMMON: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "target_modules": ATTENTION},
    "dora": {"r": 6, "lora_alpha": 9, "target_modules": EVERYTHING, "use_dora": True},
    "one-dora": {
        "r": 3,
        "target_modules": ["k_proj"],
        "layers_to_transform": [1],
        "use_dora": True,
        "use_rslora": True,
    },
    "bias": {
        "r": 5,
        "lora_alpha": 15,
        "target_modules": ["q_proj", "up_proj", "down_proj"],
        "lora_bias": True,
    },
}
VOCABULARY: dict[str, dict[str, Any]] = {
    "embedding": {"r": 7, "lora_alpha": 21, "target_modules": ["q_proj", "embed_tokens"]},
    "head": {"r": 9, "target_modules": ["v_proj", "lm_head"]},
    "head-only": {"r": 2, "target_modules": ["lm_head"], "use_rslora": True},
    "head-bias": {"r": 3, "target_modules": ["o_proj", "lm_head"], "lora_bias": True},
    "both": {
        "r": 4,
        "target_modules": r".*\.(q_proj|embed_tokens)|lm_head",
        "rank_pattern": {"embed_tokens": 11},
        "alpha_pattern": {"lm_head": 3},
    },
    "both-dora": {"r": 5, "target_modules": ["down_proj", "embed_tokens", "lm_head"], "use_dora": True},
    "saved": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved-embedding": {"r": 4, "target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
    "saved-head": {
        "r": 4,
        "target_modules": ["up_proj"],
        "modules_to_save": ["model.lm_head", "lm_head"],
        "use_dora": True,
    },
}
TIED: dict[str, dict[str, Any]] = {
    "tied-lora": {"r": 4, "target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "tied-by-head": {"r": 4, "target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True},
    "tied-saved": {
        "r": 4,
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
}
KINDS = {
    "tied": COMMON | VOCABULARY | TIED,
    "untied": COMMON | VOCABULARY | {"not-tied": TIED["tied-lora"]},
    "biased": COMMON | {"head": VOCABULARY["head"]},
}


class World(NamedTuple):
    """A base, its adapters, and what PEFT makes of them."""

    checkpoint: Path
    requests: dict[str, LoRARequest]
    oracle: Oracle

    def engine(self, **settings: Any) -> LLMEngine:
        config = {"enable_lora": True, "num_threads": 1, "max_model_len": 64, **settings}
        return LLMEngine(EngineConfig(model=str(self.checkpoint), **config))


@pytest.fixture(scope="module", params=list(KINDS))
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp(request.param)
    base = make_base(request.param)
    requests = {}
    for number, (name, options) in enumerate(KINDS[request.param].items(), start=1):
        path = train(base, LoraConfig(task_type="CAUSAL_LM", **options), folder / name, seed=number)
        requests[name] = LoRARequest(name, number, str(path))
    return World(save_base(base, folder / "base"), requests, Oracle(base, requests))


def prompts_of(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(3, 259, (1 + 5 * at % 23,), generator=generator).tolist() for at in range(count)]


class Bench:
    """An engine on a world, whose every answer must be PEFT's."""

    def __init__(self, world: World, **settings: Any) -> None:
        self.engine = world.engine(**settings)
        self._world = world
        self._tap = LogitTap(self.engine)

    def assert_equals_peft(self, names: list[str | None]) -> set[tuple[int, ...]]:
        """Serve one request per name in one batch and compare every logit and token; return the answers."""
        prompts = prompts_of(len(names))
        requests = [None if name is None else self._world.requests[name] for name in names]
        outputs = self.engine.generate(prompts, GREEDY, lora_request=requests)
        for name, prompt, output in zip(names, prompts, outputs, strict=True):
            assert output.outputs[0].finish_reason == "length", (name, output.error)
            tokens = output.outputs[0].token_ids
            logits = self._world.oracle.logits(name, prompt + tokens)[len(prompt) - 1 : -1]
            error = (self._tap.of(output.request_id) - logits).abs().max().item()
            assert error < 1e-4, name
            assert tokens == logits.argmax(dim=-1).tolist(), name
        self.engine.check_integrity()
        return {tuple(output.outputs[0].token_ids) for output in outputs}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"max_loras": 20}, id="a slot for each"),
        pytest.param({"max_loras": 3, "max_cpu_loras": 4, "max_num_batched_tokens": 40}, id="evictions"),
    ],
)
def test_every_kind_of_adapter_in_one_mixed_batch_equals_peft(world: World, settings: dict[str, int]) -> None:
    bench = Bench(world, **settings)
    names: list[str | None] = [None, *world.requests, "plain", None]

    answers = bench.assert_equals_peft(names)
    bench.assert_equals_peft(names[::-1])

    assert len(answers) >= len(names) - 3
    bench.engine.close()
