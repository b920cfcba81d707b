"""GPT-OSS beside transformers and PEFT: adapters of its experts and routers, and its MXFP4 files."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssForCausalLM, Mxfp4Config, PreTrainedModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from kernels.linear.linear import Linear
from kernels.linear.quantized_linear import QuantizedLinear
from kernels.registry import build
from tests.unit.workers.engine.expert_adapters import save_adapter
from tests.unit.workers.engine.logit_tap import LogitTap
from tests.unit.workers.engine.model.family_cases import VOCAB_SIZE, make_model
from tests.unit.workers.engine.peft_bases import save_base, train
from workers.engine import EngineConfig, LLMEngine, LoRARequest, SamplingParams
from workers.engine.core.errors import AdapterFileError, CheckpointError
from workers.engine.lora import describe_base
from workers.engine.lora.files.validate import check_adapter
from workers.engine.model.config import load_model_config
from workers.engine.model.quantization import random_codes
from workers.engine.model.weights import load_weights, random_weights

pytestmark = [
    pytest.mark.numeric,
    # PEFT looks for the experts' parameters among the modules.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]

PROMPT_LENGTHS = [40, 5, 33, 26, 2, 30]  # the window is 21
ADAPTERS: dict[str, dict[str, Any]] = {
    "everything": {
        "r": 3,
        "lora_alpha": 9,
        "use_rslora": True,
        "target_modules": "all-linear",
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.router.weight"],
        "rank_pattern": {"experts.gate_up_proj": 5},
        "alpha_pattern": {r"layers\.1\..*\.down_proj": 20},
    },
    "experts of a layer": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": None,
        "target_parameters": ["0.mlp.experts.gate_up_proj"],
    },
}
NAMES = [None, "everything", "experts of a layer", "everything", None, "experts of a layer"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as `save_pretrained` writes it."""
    return save_base(make_model("gpt-oss"), tmp_path_factory.mktemp("gpt-oss") / "base")


@pytest.fixture(scope="module")
def mxfp4(plain: Path) -> Path:
    """The same with random MXFP4 experts, whose exponents differ from block to block."""
    folder = plain.with_name("mxfp4")
    folder.mkdir()
    for path in plain.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((plain / "config.json").read_text())
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    tensors = load_file(plain / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "experts.down_proj"))]:
        num_experts, in_features, out_features = tensors.pop(name).shape
        shape = (num_experts, out_features, in_features // 32, 16)
        tensors[f"{name}_blocks"] = torch.randint(256, shape, generator=generator).to(torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(122, 126, shape[:-1], generator=generator).to(torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(9)
    return [
        torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS
    ]


def _oracle(model: PreTrainedModel, folder: Path | None, prompt: list[int], answer: list[int]) -> Tensor:
    """Return the logits that every token of an answer was chosen by, [num_tokens, vocab_size]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = model if folder is None else PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    with torch.inference_mode():
        out = peft(torch.tensor([prompt + answer[:-1]]))
    logits: Tensor = out.logits[0, len(prompt) - 1 :]
    return logits


def _assert_served(folder: Path, model: PreTrainedModel, adapters: Path, **settings: Any) -> None:
    paths = {name: adapters / name for name in ADAPTERS}
    requests = {
        name: LoRARequest(name, number, str(path)) for number, (name, path) in enumerate(paths.items(), 1)
    }
    with LLMEngine(EngineConfig(str(folder), enable_lora=True, num_threads=1, **settings)) as engine:
        tap = LogitTap(engine)
        outputs = engine.generate(
            _prompts(),
            SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True),
            lora_request=[None if name is None else requests[name] for name in NAMES],
            use_tqdm=False,
        )
        seen = [(one.outputs[0].token_ids, tap.of(one.request_id)) for one in outputs]
    for name, prompt, (answer, logits) in zip(NAMES, _prompts(), seen, strict=True):
        expected = _oracle(model, None if name is None else paths[name], prompt, answer)
        assert answer == expected.argmax(dim=-1).tolist()
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)


@pytest.fixture(scope="module")
def adapters(plain: Path) -> Path:
    """What PEFT saves of adapters on attention, experts and routers."""
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        train(make_model("gpt-oss"), LoraConfig(**options), plain.with_name("adapters") / name, seed=seed)
    return plain.with_name("adapters")


def test_adapters_of_experts_routers_and_attention_in_a_mixed_batch_equal_peft(
    plain: Path, adapters: Path
) -> None:
    _assert_served(plain, make_model("gpt-oss"), adapters, max_loras=2)


@pytest.mark.parametrize("storage", ["keep", "dequantize"])
def test_mxfp4_experts_equal_those_that_transformers_dequantises(
    mxfp4: Path, adapters: Path, storage: str
) -> None:
    model = GptOssForCausalLM.from_pretrained(
        mxfp4, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32
    ).eval()

    _assert_served(mxfp4, model, adapters, max_loras=2, quant_storage=storage)


def test_mxfp4_is_read_bit_by_bit_as_transformers_reads_it(mxfp4: Path) -> None:
    tensors, config = load_file(mxfp4 / "model.safetensors"), load_model_config(mxfp4)
    kept, spread = (
        load_weights(mxfp4, config, torch.bfloat16, keep_quantized=keep) for keep in (True, False)
    )

    for name, module in (("gate_up", "gate_up_proj"), ("down", "down_proj")):
        path = f"model.layers.1.mlp.experts.{module}"
        blocks, scales = tensors[f"{path}_blocks"], tensors[f"{path}_scales"]
        expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
        for expert, weight in enumerate(expected):
            assert torch.equal(kept.linear(1, name, expert).dense(), weight)
            assert torch.equal(spread.linear(1, name, expert).dense(), weight.to(torch.bfloat16))
    assert kept.linear_bytes < 0.6 * spread.linear_bytes


def test_random_weights_in_place_of_mxfp4_have_codes_for_experts_alone(mxfp4: Path) -> None:
    config = load_model_config(mxfp4)

    weights = random_weights(
        config,
        torch.float32,
        codes=random_codes(None, config.quantization),
        kernels=build("cpu", torch.float32),
    )

    experts = [one for members in weights.layers[0].experts.values() for one in members]
    assert {type(one) for one in experts} == {QuantizedLinear}
    assert {type(one) for one in weights.layers[0].linears.values()} == {Linear}


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("gate_up_proj_scales", 255, "has exponent 255, which stands for no number; download"),
        ("down_proj_blocks", None, r"has shape \(4, 64, 1, 16\), config.json implies \(5, 64, 1, 16\)"),
        ("down_proj_bias", None, r"has shape \(4, 64\), config.json implies \(5, 64\)"),
    ],
)
def test_stacks_that_mean_no_weights_are_refused(
    name: str, value: int | None, match: str, mxfp4: Path, tmp_path: Path
) -> None:
    tensors = load_file(mxfp4 / "model.safetensors")
    path = f"model.layers.0.mlp.experts.{name}"
    if value is None:
        tensors[path] = tensors[path][:4].contiguous()
    else:
        tensors[path][2, 1, 0] = value
    (tmp_path / "config.json").write_bytes((mxfp4 / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")

    with pytest.raises(CheckpointError, match=match):
        load_weights(tmp_path, load_model_config(tmp_path), torch.float32)


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (("gate_up_proj",), "'model.layers.0.mlp.experts.gate_up_proj'"),
        (("q_proj", "down_proj"), "'model.layers.0.mlp.experts.down_proj'"),
        (("o_proj", "router"), "'model.layers.0.mlp.router.weight'"),
    ],
)
def test_names_of_modules_that_the_experts_do_not_have_are_refused(
    targets: tuple[str, ...], named: str, plain: Path, tmp_path: Path
) -> None:
    base = describe_base(plain)
    save_adapter(base, targets, 2, tmp_path / "sql")

    with pytest.raises(AdapterFileError, match=f"no such modules, but the parameter {named}; train it with"):
        check_adapter(tmp_path / "sql", base=base, max_rank=8)
