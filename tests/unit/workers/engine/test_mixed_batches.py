"""Base rows and adapter rows in one forward pass: right, independent of each other, free for the base."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaForCausalLM

from tests.unit.products import assert_same_logits
from tests.unit.workers.engine.logit_tap import LogitTap
from workers.engine import LLMEngine, LoRARequest, RequestOutput, SamplingParams

# PEFT 0.21 asks transformers 5 for an attribute that is going away.
pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

GREEDY = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)
KINDS = ["base", "mlp", "one-module", "wide"]  # no adapter, r 8, r 16, r 64 with rsLoRA

MakeEngine = Callable[..., LLMEngine]


@pytest.fixture(scope="module")
def loras(
    llama: LlamaForCausalLM, adapters: dict[str, LoRARequest], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, LoRARequest | None]:
    torch.manual_seed(64)
    config = LoraConfig(r=64, lora_alpha=8, target_modules="all-linear", use_rslora=True)
    model = get_peft_model(copy.deepcopy(llama), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = str(tmp_path_factory.mktemp("wide"))
    model.save_pretrained(folder)
    return {"base": None, "wide": LoRARequest("wide", 64, folder), **adapters}


@pytest.fixture
def same_length_prompts() -> list[list[int]]:
    """Sixteen prompts of sixteen tokens: every step has a multiple of four rows."""
    return torch.randint(3, 259, (16, 16), generator=torch.Generator().manual_seed(3)).tolist()


def merged(llama: LlamaForCausalLM, lora: LoRARequest | None) -> LlamaForCausalLM:
    if lora is None:
        return llama
    return PeftModel.from_pretrained(copy.deepcopy(llama), lora.lora_path).merge_and_unload()


def logits_of(tap: LogitTap, outputs: list[RequestOutput]) -> list[Tensor]:
    return [tap.of(output.request_id) for output in outputs]


def test_behaviour_01_a_mixed_batch_equals_merged_weights_row_by_row(
    make_engine: MakeEngine,
    llama: LlamaForCausalLM,
    loras: dict[str, LoRARequest | None],
    prompts: list[list[int]],
) -> None:
    engine = make_engine(enable_lora=True)
    tap = LogitTap(engine)

    outputs = engine.generate(prompts[:8], GREEDY, lora_request=[loras[kind] for kind in KINDS] * 2)

    for place, kind in enumerate(KINDS):
        model = merged(llama, loras[kind])
        for output in outputs[place::4]:
            tokens = output.outputs[0].token_ids
            ids = torch.tensor([output.prompt_token_ids + tokens])
            with torch.inference_mode():
                expected = model(ids).logits[0, len(output.prompt_token_ids) - 1 : -1].float()
            torch.testing.assert_close(tap.of(output.request_id), expected, atol=1e-4, rtol=0)
            assert tokens == expected.argmax(dim=-1).tolist()
    engine.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_behaviour_01_base_rows_have_the_bits_of_an_engine_without_lora(
    make_engine: MakeEngine,
    loras: dict[str, LoRARequest | None],
    same_length_prompts: list[list[int]],
    dtype: str,
) -> None:
    with_lora, without = make_engine(enable_lora=True, dtype=dtype), make_engine(dtype=dtype)
    mixed, alone = LogitTap(with_lora), LogitTap(without)
    asked = [loras[kind] for kind in KINDS] * 4

    among = logits_of(mixed, with_lora.generate(same_length_prompts, GREEDY, lora_request=asked))
    base = logits_of(alone, without.generate(same_length_prompts, GREEDY))

    for place in range(0, 16, 4):
        assert_same_logits(among[place], base[place], dtype)
    assert not any(torch.equal(among[place], base[place]) for place in range(1, 16, 4))
    for engine in (with_lora, without):
        engine.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_behaviour_02_slots_order_and_neighbours_change_no_bit(
    make_engine: MakeEngine,
    loras: dict[str, LoRARequest | None],
    same_length_prompts: list[list[int]],
    dtype: str,
) -> None:
    engines = [make_engine(enable_lora=True, max_loras=3, dtype=dtype) for _ in range(2)]
    for engine, order in zip(engines, (KINDS[1:], KINDS[:0:-1]), strict=True):
        for kind in order:  # the lowest free slot each: so the two engines hold them in opposite slots
            lora = loras[kind]
            assert lora is not None
            engine.add_lora(lora)
    taps = [LogitTap(engine) for engine in engines]
    asked = [loras[kind] for kind in KINDS] * 4

    forward = engines[0].generate(same_length_prompts, GREEDY, lora_request=asked)
    backward = engines[1].generate(same_length_prompts[::-1], GREEDY, lora_request=asked[::-1])

    for one, other in zip(logits_of(taps[0], forward), logits_of(taps[1], backward)[::-1], strict=True):
        assert_same_logits(one, other, dtype)
    for engine in engines:
        engine.close()


def test_behaviour_26_a_base_only_batch_calls_no_lora_operation(
    make_engine: MakeEngine, loras: dict[str, LoRARequest | None], prompts: list[list[int]]
) -> None:
    plain, serving, mixed = make_engine(), make_engine(enable_lora=True), make_engine(enable_lora=True)
    lora = loras["mlp"]
    assert lora is not None
    for engine in (serving, mixed):
        engine.add_lora(lora)

    expected = operations(plain, prompts[:5], None)

    assert operations(serving, prompts[:5], None) == expected
    assert operations(mixed, prompts[:5], lora) != expected
    for engine in (plain, serving, mixed):
        engine.close()


def operations(engine: LLMEngine, prompts: list[list[int]], lora: LoRARequest | None) -> Counter[str]:
    """Count every operator that the forward passes call, as torch's profiler sees them."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        engine.generate(prompts, GREEDY, lora_request=lora)
    return Counter({event.key: event.count for event in profiler.key_averages()})
