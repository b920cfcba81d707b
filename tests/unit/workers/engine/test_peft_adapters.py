"""Adapters as people have them, in mixed batches, against transformers with PEFT."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.unit.workers.engine.logit_tap import LogitTap
from tests.unit.workers.engine.peft_bases import Oracle, make_base, save_base, train
from workers.engine import EngineConfig, LLMEngine, LoRAMix, LoRARequest, SamplingParams

pytestmark = pytest.mark.numeric

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
WEIGHTS = "adapter_model.safetensors"
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
RANKS: dict[str, dict[str, Any]] = {
    f"rank-{rank}": {"r": rank, "lora_alpha": 2, "target_modules": EVERYTHING} for rank in (1, 37, 512)
}
PATTERNS: dict[str, dict[str, Any]] = {
    "layers": {"r": 4, "target_modules": ["q_proj", "down_proj", "lm_head"], "layers_to_transform": [1]},
    "regex": {
        "r": 4,
        "target_modules": r".*layers\.(0|1)\.(?!mlp).*[qv]_proj",
        "exclude_modules": r".*1.*v_proj",
    },
    "all-linear": {
        "r": 6,
        "lora_alpha": 13,
        "target_modules": "all-linear",
        "use_rslora": True,
        "rank_pattern": {"q_proj": 17, r"layers\.1\.mlp\.up_proj": 2},
        "alpha_pattern": {"down_proj": 3, "model.layers.0.self_attn.v_proj": 40},
    },
}
KINDS = {
    "tied": COMMON | VOCABULARY | TIED,
    "untied": COMMON | VOCABULARY | {"not-tied": TIED["tied-lora"]},
    "biased": COMMON | RANKS | PATTERNS,
}


class World(NamedTuple):
    """A base, its adapters, and what PEFT makes of them."""

    checkpoint: Path
    requests: dict[str, LoRARequest]
    oracle: Oracle

    def engine(self, **settings: Any) -> LLMEngine:
        config = {
            "enable_lora": True,
            "num_threads": 1,
            "max_model_len": 64,
            "max_lora_rank": 512,
            **settings,
        }
        return LLMEngine(EngineConfig(model=str(self.checkpoint), **config))


def make_world(base: PreTrainedModel, kinds: dict[str, dict[str, Any]], folder: Path) -> World:
    requests = {}
    for number, (name, options) in enumerate(kinds.items(), start=1):
        path = train(base, LoraConfig(task_type="CAUSAL_LM", **options), folder / name, seed=number)
        requests[name] = LoRARequest(name, number, str(path))
    return World(save_base(base, folder / "base"), requests, Oracle(base, requests))


@pytest.fixture(scope="module", params=list(KINDS))
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    kind = request.param
    return make_world(make_base(kind), KINDS[kind], tmp_path_factory.mktemp(kind))


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
def test_behaviour_06_every_kind_of_adapter_in_one_mixed_batch_equals_peft(
    world: World, settings: dict[str, int]
) -> None:
    bench = Bench(world, **settings)
    names: list[str | None] = [None, *world.requests, "plain", None]

    answers = bench.assert_equals_peft(names)
    bench.assert_equals_peft(names[::-1])

    assert len(answers) >= len(names) - 3
    bench.engine.close()


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The untied base with a few adapters of its own."""
    folder = tmp_path_factory.mktemp("few")
    base = make_base("untied")
    kinds = {
        name: (COMMON | VOCABULARY)[name] for name in ("plain", "dora", "both-dora", "saved", "saved-head")
    }
    return make_world(base, kinds, folder)


def test_a_scaled_adapter_with_dora_equals_pefts(untied: World) -> None:
    engine = untied.engine(max_loras=4)
    tap, prompt = LogitTap(engine), prompts_of(9)[-1]
    requests = [replace(untied.requests["both-dora"], scale=scale) for scale in (0.5, -1.25, 0.0)]

    outputs = engine.generate([prompt] * 4, GREEDY, lora_request=[*requests, None])

    for request, output in zip(requests, outputs, strict=False):
        tokens = output.outputs[0].token_ids
        logits = untied.oracle.logits("both-dora", prompt + tokens, scale=request.scale)[len(prompt) - 1 : -1]
        assert (tap.of(output.request_id) - logits).abs().max() < 1e-4, request.scale
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 4
    engine.close()


@pytest.mark.parametrize(("name", "reason"), [("dora", "use_dora"), ("saved", "modules_to_save")])
def test_what_replaces_or_rescales_the_base_is_refused_in_a_mix_by_name(
    untied: World, name: str, reason: str
) -> None:
    engine = untied.engine(max_loras=4)
    mix = LoRAMix([(untied.requests["plain"], 0.5), (untied.requests[name], 0.5)])

    (refused, served) = engine.generate([[5, 6]] * 2, GREEDY, lora_request=[mix, untied.requests[name]])

    assert refused.outputs[0].finish_reason == "error"
    assert f"{name!r} cannot be in a LoRAMix" in str(refused.error)
    assert reason in str(refused.error)
    assert served.outputs[0].finish_reason == "length"
    engine.close()


def test_behaviour_10_whole_modules_over_their_budget_are_refused_with_the_bytes(untied: World) -> None:
    both, one = 2 * 259 * 32 * 4, 259 * 32 * 4
    engine = untied.engine(max_loras=4, max_saved_module_bytes=both - 1)
    names = ["saved", "saved-head", "plain"]

    outputs = engine.generate([[5, 6]] * 3, GREEDY, lora_request=[untied.requests[name] for name in names])

    assert [output.outputs[0].finish_reason for output in outputs] == ["error", "length", "length"]
    assert f"take {both} bytes, but max_saved_module_bytes is {both - 1}; " in str(outputs[0].error)
    stats = engine.stats().adapters
    assert stats is not None
    assert stats.saved_module_bytes == one
    engine.close()


def test_whole_modules_of_idle_adapters_give_way_within_the_budget(untied: World) -> None:
    bench = Bench(untied, max_loras=4, max_saved_module_bytes=2 * 259 * 32 * 4)

    for names in (["saved", "plain", None], ["saved-head", "dora"], ["saved", "saved-head", "saved"]):
        bench.assert_equals_peft(list(names))
        stats = bench.engine.stats().adapters
        assert stats is not None
        assert 0 < stats.saved_module_bytes <= 2 * 259 * 32 * 4
    bench.engine.close()


def test_behaviour_34_an_adapters_bytes_are_those_of_its_padded_matrices(untied: World) -> None:
    engine = untied.engine(max_loras=4)
    engine.add_lora(untied.requests["plain"])

    # Four modules of two layers, rank 4 padded to 16, in float32: A is [16, in], B is [out, 16].
    expected = (
        4
        * 16
        * 2
        * sum(width_in + width_out for width_in, width_out in ((32, 32), (32, 16), (32, 16), (32, 32)))
    )
    stats = engine.stats().adapters
    assert stats is not None
    assert stats.host_bytes == expected
    engine.close()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_in_shards_equal_peft(dtype: torch.dtype, untied: World, tmp_path: Path) -> None:
    request = untied.requests["both-dora"]
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    for folder in (whole, shards):
        shutil.copytree(request.lora_path, folder)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(whole / WEIGHTS).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if "base_layer" not in name}
    save_file(tensors, whole / WEIGHTS)
    (shards / WEIGHTS).unlink()
    for index, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), start=1):
        shard = shards / f"adapter_model-{index:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, shard)
    requests = {"whole": LoRARequest("whole", 1, str(whole)), "shards": LoRARequest("shards", 2, str(shards))}
    world = World(untied.checkpoint, requests, Oracle(make_base("untied"), {"whole": requests["whole"]}))
    world.oracle.alias("shards", "whole")
    bench = Bench(world, max_loras=2)

    bench.assert_equals_peft(["whole", None, "shards"])
    bench.engine.close()


def test_bfloat16_errs_no_more_than_twice_as_much_as_peft_in_bfloat16(untied: World) -> None:
    names = ["dora", "both-dora", "saved", None]
    engine = untied.engine(max_loras=4, dtype="bfloat16")
    tap, prompts = LogitTap(engine), prompts_of(len(names))
    rounded = Oracle(make_base("untied"), untied.requests).to(torch.bfloat16)

    requests = [None if name is None else untied.requests[name] for name in names]
    outputs = engine.generate(prompts, GREEDY, lora_request=requests)

    for name, prompt, output in zip(names, prompts, outputs, strict=True):
        token_ids = prompt + output.outputs[0].token_ids
        exact = untied.oracle.logits(name, token_ids)[len(prompt) - 1 : -1]
        peft_error = (rounded.logits(name, token_ids)[len(prompt) - 1 : -1] - exact).abs().mean()
        assert (tap.of(output.request_id) - exact).abs().mean() < 2.0 * peft_error, name
    engine.close()


def test_prompt_log_probabilities_are_those_of_the_adapters_head(untied: World) -> None:
    prompt, params = prompts_of(9)[-1], replace(GREEDY, max_tokens=1, prompt_logprobs=0)
    engine = untied.engine(max_loras=4)

    outputs = engine.generate(
        [prompt] * 3, params, lora_request=[untied.requests["both-dora"], untied.requests["saved-head"], None]
    )

    for name, output in zip(("both-dora", "saved-head", None), outputs, strict=True):
        expected = untied.oracle.logits(name, prompt).log_softmax(dim=-1)
        found = output.prompt_logprobs
        assert found is not None
        for at, token_id in enumerate(prompt[1:], start=1):
            of_token = found[at]
            assert of_token is not None
            assert abs(of_token[token_id].logprob - expected[at - 1, token_id].item()) < 1e-4
    engine.close()
