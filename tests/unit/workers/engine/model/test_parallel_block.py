"""A family with another block is one file: attention and MLP side by side after one norm, as in GPT-J."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from tests.unit.workers.engine.conftest import save_tokenizer
from tests.unit.workers.engine.logit_tap import LogitTap
from workers.engine import EngineConfig, LLMEngine, LoRARequest, SamplingParams
from workers.engine.core.step_input import ForwardInput
from workers.engine.model.families import FAMILIES
from workers.engine.model.families.family import Family, LayerNorms
from workers.engine.model.layers.adapted_linear import Delta, whole
from workers.engine.model.layers.decoder_layer import LayerParts
from workers.engine.model.layers.layer_builders import LAYER_BUILDERS
from workers.engine.model.layers.ops import Rotation

ARCHITECTURE = "ParallelForCausalLM"
HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB_SIZE, EPS = 32, 48, 4, 2, 8, 2, 259, 1e-5
SHAPES = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (WIDTH, HIDDEN),
    "mlp.up_proj": (WIDTH, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDTH),
}
PROMPTS = [[5, 9, 200, 31, 77], [3] * 20, [250, 4], list(range(3, 40))]
NUM_TOKENS = 8


class ParallelLayer:
    """x + attention(norm(x)) + mlp(norm(x))."""

    def __init__(self, parts: LayerParts) -> None:
        self._parts = parts
        self._attention, self._mlp = parts.attention(), parts.mlp()

    def __call__(
        self,
        residual: Tensor,
        delta: Delta | None,
        rotations: Sequence[Rotation],
        step: ForwardInput,
        kv: tuple[Tensor, Tensor],
    ) -> Tensor:
        parts = self._parts
        norm, eps = parts.weights.pre_attention_norm, parts.config.rms_norm_eps
        assert norm is not None
        before = None if delta is None else whole(delta)
        normed = parts.kernels.add_rms_norm(residual, before, norm, eps)
        attended = self._attention(normed, rotations[parts.rotary], step, kv)
        return parts.comm.add(whole(attended) + whole(self._mlp(normed, step.segments)))


FAMILY = Family(architecture=ARCHITECTURE, norms=LayerNorms(pre_mlp=None))


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve the family, for this file's tests only."""
    monkeypatch.setitem(FAMILIES, ARCHITECTURE, FAMILY)
    monkeypatch.setitem(LAYER_BUILDERS, ARCHITECTURE, ParallelLayer)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A random checkpoint of the family."""
    folder, generator = tmp_path / "base", torch.Generator().manual_seed(11)
    folder.mkdir()
    save_tokenizer(folder)
    tensors = {
        "model.norm.weight": _random(generator, HIDDEN) + 1,
        "lm_head.weight": _random(generator, VOCAB_SIZE, HIDDEN),
    }
    tensors["model.embed_tokens.weight"] = _random(generator, VOCAB_SIZE, HIDDEN)
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = _random(generator, HIDDEN) + 1
        for name, shape in SHAPES.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = _random(generator, *shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": [ARCHITECTURE],
                "vocab_size": VOCAB_SIZE,
                "hidden_size": HIDDEN,
                "intermediate_size": WIDTH,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": KV_HEADS,
                "head_dim": HEAD_DIM,
                "hidden_act": "silu",
                "max_position_embeddings": 128,
                "rms_norm_eps": EPS,
                "rope_theta": 10000.0,
                "tie_word_embeddings": False,
                "bos_token_id": 0,
                "eos_token_id": 1,
            }
        )
    )
    return folder


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator) * 0.3


def _save_adapter(folder: Path, *, rank: int, seed: int) -> Path:
    """Write an adapter on every linear module, as PEFT does."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    tensors = {}
    for layer in range(LAYERS):
        for name, (out_features, in_features) in SHAPES.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{path}.lora_A.weight"] = _random(generator, rank, in_features)
            tensors[f"{path}.lora_B.weight"] = _random(generator, out_features, rank)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": "all-linear",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _reference(base: Path, adapter: Path | None, token_ids: list[int]) -> Tensor:  # [num_tokens, vocab_size]
    """Compute the model in plain torch, its adapter merged: lora_alpha is r, so B A is added as it is."""
    weights = load_file(base / "model.safetensors")
    if adapter is not None:
        lora = load_file(adapter / "adapter_model.safetensors")
        for name in [name for name in lora if name.endswith("lora_A.weight")]:
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weights[f"{path}.weight"] = (
                weights[f"{path}.weight"] + lora[name.replace("lora_A", "lora_B")] @ lora[name]
            )
    x = weights["model.embed_tokens.weight"][torch.tensor(token_ids)]
    for layer in range(LAYERS):
        own = {name: weights[f"model.layers.{layer}.{name}.weight"] for name in SHAPES}
        normed = F.rms_norm(x, (HIDDEN,), weights[f"model.layers.{layer}.input_layernorm.weight"], EPS)
        mlp = (
            F.silu(normed @ own["mlp.gate_proj"].T) * (normed @ own["mlp.up_proj"].T) @ own["mlp.down_proj"].T
        )
        x = x + _attention(normed, own) + mlp
    return F.rms_norm(x, (HIDDEN,), weights["model.norm.weight"], EPS) @ weights["lm_head.weight"].T


def _attention(x: Tensor, own: dict[str, Tensor]) -> Tensor:
    def heads(name: str, count: int) -> Tensor:  # [count, num_tokens, head_dim]
        return (x @ own[f"self_attn.{name}"].T).view(len(x), count, HEAD_DIM).transpose(0, 1)

    repeat = HEADS // KV_HEADS
    q = _rotated(heads("q_proj", HEADS))
    k = _rotated(heads("k_proj", KV_HEADS)).repeat_interleave(repeat, dim=0)
    v = heads("v_proj", KV_HEADS).repeat_interleave(repeat, dim=0)
    scores = q @ k.transpose(1, 2) / math.sqrt(HEAD_DIM)
    attended = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -math.inf).softmax(-1) @ v
    return attended.transpose(0, 1).reshape(len(x), -1) @ own["self_attn.o_proj"].T


def _rotated(x: Tensor) -> Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = torch.arange(x.shape[1])[:, None] * frequencies
    cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, LoRARequest | None]:
    """The base and two adapters of different ranks."""
    paths = [_save_adapter(tmp_path / f"adapter-{rank}", rank=rank, seed=rank) for rank in (4, 9)]
    return {"base": None} | {
        path.name: LoRARequest(path.name, at, str(path)) for at, path in enumerate(paths, 1)
    }


def test_a_parallel_block_with_its_adapters_equals_a_plain_reference(
    base: Path, adapters: dict[str, LoRARequest | None]
) -> None:
    engine = LLMEngine(EngineConfig(str(base), enable_lora=True, max_loras=2, num_threads=1))
    tap = LogitTap(engine)
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    work = [
        (f"{name}-{at}", prompt, lora) for name, lora in adapters.items() for at, prompt in enumerate(PROMPTS)
    ]

    for request_id, prompt, lora in work:
        engine.add_request(request_id, prompt, params, lora)
    tokens: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        tokens |= {one.request_id: one.outputs[0].token_ids for one in engine.step() if one.finished}
    engine.close()

    for request_id, prompt, lora in work:
        expected = _reference(
            base, None if lora is None else Path(lora.lora_path), prompt + tokens[request_id]
        )
        seen = expected[len(prompt) - 1 : -1]
        torch.testing.assert_close(tap.of(request_id), seen, atol=1e-4, rtol=0)
        assert seen.argmax(-1).tolist() == tokens[request_id]
