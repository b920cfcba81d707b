"""Families with experts against transformers and PEFT, with LoRA on experts, routers and attention."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.unit.workers.engine.conftest import PAD_ID, save_tokenizer
from tests.unit.workers.engine.expert_adapters import named_as_in, save_adapter
from tests.unit.workers.engine.model.family_cases import SPARSE_CASES, VOCAB_SIZE, make_model
from workers.engine import EngineConfig, LLMEngine, LoRARequest, SamplingParams
from workers.engine.lora import describe_base

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # PEFT looks for the fused experts, which are parameters, among the modules.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]

PROMPT_LENGTHS = [40, 5, 17, 33, 2, 26, 9, 30]
NUM_TOKENS = 10
# What each adapter changes: last parts of module paths, and its rank.
ADAPTERS = {"experts": (("w1", "w2", "w3", "gate"), 4), "attention": (("q_proj", "o_proj"), 5)}


@dataclass(frozen=True)
class Case:
    """A model as transformers has it in memory, and as it lies on disk with its adapters."""

    model: PreTrainedModel
    merged: PreTrainedModel  # with the DoRA adapter in its weights, as PEFT knows no DoRA for fused experts
    folder: Path
    adapters: dict[str, LoRARequest]


@pytest.fixture(scope="module", params=SPARSE_CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One family's checkpoint, an adapter on experts and routers and one on the attention."""
    model, folder = make_model(request.param), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder / "base")
    save_tokenizer(folder / "base")
    base = describe_base(folder / "base")
    adapters = {}
    for number, (name, (targets, rank)) in enumerate(ADAPTERS.items(), start=1):
        save_adapter(base, named_as_in(base, targets), rank, folder / name)
        adapters[name] = LoRARequest(name, number, str(folder / name))
    _train_fused(model, folder / "fused")
    peft = PeftModel.from_pretrained(model, folder / "experts")
    peft.save_pretrained(folder / "converted")  # as fused experts, whose gate_up has twice the rank
    peft.unload()
    merged = _save_dora(folder / "base", folder / "experts", folder / "dora")
    for number, name in enumerate(("fused", "converted", "dora"), start=1 + len(adapters)):
        adapters[name] = LoRARequest(name, number, str(folder / name))
    return Case(model, merged, folder / "base", adapters)


def _save_dora(base: Path, plain: Path, path: Path) -> PreTrainedModel:
    """Give a plain adapter magnitudes; returns the base with W' = m V / |V| of each row, V = W + s B A."""
    path.mkdir()
    config = json.loads((plain / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    generator = torch.Generator().manual_seed(8)
    weights, tensors = load_file(base / "model.safetensors"), load_file(plain / "adapter_model.safetensors")
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        module = key.removesuffix(".lora_A.weight")
        b, a = tensors[f"{module}.lora_B.weight"], tensors[key]
        name = f"{module.removeprefix('base_model.model.')}.weight"
        changed = weights[name] + config["lora_alpha"] / config["r"] * b @ a
        magnitude = weights[name].norm(dim=1) * (0.7 + 0.6 * torch.rand(len(b), generator=generator))
        weights[name] = changed * (magnitude / changed.norm(dim=1)).unsqueeze(1)
        tensors[f"{module}.lora_magnitude_vector"] = magnitude
    save_file(tensors, path / "adapter_model.safetensors")
    shutil.copytree(base, path.with_name("merged"))
    save_file(weights, path.with_name("merged") / "model.safetensors", metadata={"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(path.with_name("merged"))


def _train_fused(model: PreTrainedModel, path: Path) -> None:
    """Save what PEFT makes of fused experts, with weights as if trained."""
    config = LoraConfig(
        r=3,
        lora_alpha=24,
        use_rslora=True,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        rank_pattern={"experts.gate_up_proj": 5},
        alpha_pattern={r"layers\.1\..*\.down_proj": 40},
        init_lora_weights=False,
    )
    torch.manual_seed(5)
    peft = get_peft_model(model, config)
    peft.save_pretrained(path)
    peft.unload()


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS
    ]


def _serve(case: Case, names: Sequence[str | None], **limits: Any) -> list[list[int]]:
    engine = LLMEngine(EngineConfig(str(case.folder), enable_lora=True, num_threads=1, **limits))
    outputs = engine.generate(
        _prompts()[: len(names)],
        SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True),
        lora_request=[None if name is None else case.adapters[name] for name in names],
    )
    engine.close()
    return [output.outputs[0].token_ids for output in outputs]


def _generate(model: PreTrainedModel | PeftModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            eos_token_id=None,
            pad_token_id=PAD_ID,
        )
    return out[0, len(prompt) :].tolist()


def test_experts_and_adapters_in_a_mixed_batch_equal_peft(case: Case) -> None:
    names = [None, "experts", "attention", "fused", "dora", "fused", "converted", "dora"]

    served = _serve(case, names, max_loras=5)

    prompts = _prompts()
    expected = {at: _generate(case.model, prompts[at]) for at, name in enumerate(names) if name is None}
    expected |= {at: _generate(case.merged, prompts[at]) for at, name in enumerate(names) if name == "dora"}
    for name in case.adapters.keys() - {"dora"}:
        peft = PeftModel.from_pretrained(case.model, case.adapters[name].lora_path)
        expected |= {at: _generate(peft, prompts[at]) for at, named in enumerate(names) if named == name}
        peft.unload()
    assert served == [expected[at] for at in range(len(names))]


def test_answers_do_not_depend_on_slots_neighbours_or_evictions(case: Case) -> None:
    names = ["experts", "attention", "experts", "attention"]

    together = _serve(case, names, max_loras=2)
    in_turn = _serve(case, names, max_loras=1, max_num_seqs=1, max_num_batched_tokens=16)

    assert together == in_turn
