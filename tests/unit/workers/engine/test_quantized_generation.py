"""Adapters upon quantised bases: as PEFT upon what the base's own tool reads out of its files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.unit.workers.engine.logit_tap import LogitTap
from tests.unit.workers.engine.quantized_checkpoints import FORMATS, IN_FLIGHT, Dequantized, save_plain
from workers.engine import EngineConfig, LLMEngine, LoRARequest, RequestOutput, SamplingParams
from workers.engine.core.errors import ConfigError
from workers.engine.model.config import load_model_config
from workers.engine.model.quantization import in_flight
from workers.engine.model.weights import load_weights

# PEFT 0.21 asks transformers 5 for an attribute that is going away.
pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
FIRST = SamplingParams(max_tokens=1, temperature=0.0)
PARTS = [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)]  # of a layer, out and in
NUM_LAYERS = 2
NUM_LINEAR_WEIGHTS = NUM_LAYERS * sum(rows * columns for rows, columns in PARTS)
EIGHT_BITS = {"bitsandbytes int8", "GPTQ 8 bits", "int8 in flight"}
METHODS = {"NF4": "bitsandbytes", "AWQ": "awq", "GPTQ": "gptq"}  # others go by their own names


class Case(NamedTuple):
    """A quantised checkpoint, and the same base dequantised, in transformers."""

    name: str
    folder: Path
    model: LlamaForCausalLM

    def engine(self, **settings: object) -> LLMEngine:
        """Start an engine upon the quantised base."""
        return LLMEngine(
            EngineConfig(
                model=str(self.folder),
                quantization=IN_FLIGHT.get(self.name),
                enable_lora=True,
                num_threads=1,
                **settings,  # type: ignore[arg-type]
            )
        )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "base"
    save_plain(folder)
    return folder


@pytest.fixture(scope="module", params=FORMATS)
def case(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("quantized") / "base"
    dequantized = FORMATS[request.param](base, folder)
    return Case(request.param, folder, _with_weights(base, dequantized))


def _with_weights(base: Path, weights: Dequantized) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(base).eval()
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unexpected
    assert sum(weight.numel() for weight in weights.values()) == NUM_LINEAR_WEIGHTS
    return model


@pytest.fixture(scope="module")
def loras(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[LoRARequest | None]:
    """No adapter, one on every module, one on some, one with DoRA."""
    folder = tmp_path_factory.mktemp("adapters")
    requests: list[LoRARequest | None] = [None]
    targets: list[str | list[str]] = ["all-linear", ["q_proj", "v_proj", "down_proj"], ["k_proj", "up_proj"]]
    for number, modules in enumerate(targets, start=1):
        torch.manual_seed(number)
        config = LoraConfig(r=4 * number, lora_alpha=8, target_modules=modules, use_dora=number == 3)
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(str(folder / str(number)))
        requests.append(LoRARequest(str(number), number, str(folder / str(number))))
    return requests


def peft_logits(
    model: LlamaForCausalLM, lora: LoRARequest | None, outputs: list[RequestOutput]
) -> list[Tensor]:
    """What PEFT, adapters unmerged, chooses each token of these outputs from."""
    adapted = model if lora is None else PeftModel.from_pretrained(copy.deepcopy(model), lora.lora_path)
    logits = []
    for output in outputs:
        ids = torch.tensor([output.prompt_token_ids + output.outputs[0].token_ids])
        with torch.inference_mode():
            logits.append(adapted(ids).logits[0, len(output.prompt_token_ids) - 1 : -1].float())
    return logits


def test_behaviour_07_a_quantised_base_with_adapters_equals_the_dequantised_base_with_them(
    case: Case, loras: list[LoRARequest | None], prompts: list[list[int]]
) -> None:
    engine = case.engine()
    tap = LogitTap(engine)

    outputs = engine.generate(prompts, GREEDY, lora_request=loras * 3)

    engine.close()
    for place, lora in enumerate(loras):
        expected = peft_logits(case.model, lora, outputs[place::4])
        for output, logits in zip(outputs[place::4], expected, strict=True):
            torch.testing.assert_close(tap.of(output.request_id), logits, atol=1e-4, rtol=0)
            assert output.outputs[0].token_ids == logits.argmax(dim=-1).tolist()


def test_behaviour_07_in_bfloat16_it_errs_no_more_than_twice_what_peft_does(
    case: Case, loras: list[LoRARequest | None], prompts: list[list[int]]
) -> None:
    engine = case.engine(dtype="bfloat16")
    tap = LogitTap(engine)

    outputs = engine.generate(prompts, FIRST, lora_request=loras * 3)

    engine.close()
    in_bfloat16 = copy.deepcopy(case.model).bfloat16()
    ours, theirs = [], []
    for place, lora in enumerate(loras):
        asked = outputs[place::4]
        exact = torch.cat(peft_logits(case.model, lora, asked))
        ours.append(torch.cat([tap.of(output.request_id) for output in asked]) - exact)
        theirs.append(torch.cat(peft_logits(in_bfloat16, lora, asked)) - exact)
    assert torch.cat(ours).abs().max() <= 2 * torch.cat(theirs).abs().max()
    assert torch.cat(ours).square().mean() <= 4 * torch.cat(theirs).square().mean()


def test_every_weight_is_what_its_own_tool_reads(case: Case) -> None:
    config = load_model_config(case.folder)
    quantize = in_flight(IN_FLIGHT.get(case.name), config.quantization)
    weights = load_weights(case.folder, config, torch.float32, in_flight=quantize)

    for layer, theirs in zip(weights.layers, case.model.model.layers, strict=True):
        attention, mlp = theirs.self_attn, theirs.mlp
        for name, modules in {
            "qkv": (attention.q_proj, attention.k_proj, attention.v_proj),
            "o": (attention.o_proj,),
            "gate_up": (mlp.gate_proj, mlp.up_proj),
            "down": (mlp.down_proj,),
        }.items():
            ours = layer.linears[name].dense()
            expected = torch.cat([module.weight for module in modules])
            # The int8 formats' scales are multiplied in another order: one unit in the last place.
            tolerance = 1.2e-7 if "int8" in case.name else 0.0
            torch.testing.assert_close(ours, expected, rtol=tolerance, atol=0.0)


def test_kept_quantised_it_holds_what_the_formula_says_and_a_fraction_of_bfloat16(case: Case) -> None:
    engine = case.engine()
    held, quantization = engine.info.linear_bytes, engine.info.quantization
    engine.close()

    assert quantization == METHODS.get(case.name.split()[0], case.name.split()[0])
    assert held == pytest.approx(formula(case.name), rel=0.01)
    assert held <= (0.6 if case.name in EIGHT_BITS else 0.35) * 2 * NUM_LINEAR_WEIGHTS


def formula(name: str) -> float:
    """Codes, a float32 scale per block, a byte per zero, and the small change."""
    code_bytes = 1.0 if name in EIGHT_BITS else 0.5
    total = 0.0
    for rows, columns in PARTS:
        if "4" in name:  # NF4 and FP4: no zeros, a table of their own
            total += rows * columns * (code_bytes + 4 / 64) + 64
        else:
            block = columns if "int8" in name or "one group" in name else 32
            total += rows * columns * (code_bytes + 5 / block)
    orders = (
        4 * (64 + 64 + 64 + 96) if "importance" in name else 0
    )  # of the inputs of qkv, o, gate_up and down
    return NUM_LAYERS * (total + orders)


@pytest.mark.parametrize(("dtype", "item_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_dequantised_it_holds_plain_weights_and_gives_the_same_logits(
    case: Case, loras: list[LoRARequest | None], prompts: list[list[int]], dtype: str, item_bytes: int
) -> None:
    kept, plain = case.engine(dtype=dtype), case.engine(dtype=dtype, quant_storage="dequantize")
    taps = [LogitTap(kept), LogitTap(plain)]

    answers = [engine.generate(prompts, FIRST, lora_request=loras * 3) for engine in (kept, plain)]

    ours, theirs = (
        torch.cat([tap.of(output.request_id) for output in outputs])
        for tap, outputs in zip(taps, answers, strict=True)
    )
    assert plain.info.linear_bytes == item_bytes * NUM_LINEAR_WEIGHTS
    tolerance = 1e-4 if dtype == "float32" else 0.02 * float(theirs.std())
    assert (ours - theirs).square().mean().sqrt() <= tolerance
    for engine in (kept, plain):
        engine.close()


def test_a_plain_base_is_not_taken_for_one_of_awq(base: Path) -> None:
    with pytest.raises(ConfigError, match="quantization is 'awq', but the checkpoint is not quantised"):
        LLMEngine(EngineConfig(model=str(base), quantization="awq"))
