"""What an engine on a card is told before anything is loaded, tried without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from examples.tiny.recipe import BASE_DIR
from tests.unit.workers.engine.model.family_cases import SPARSE_CASES
from tests.unit.workers.engine.peft_bases import save_base
from workers.engine import EngineConfig, LLMEngine, SamplingParams
from workers.engine.core.device_facts import device_facts
from workers.engine.core.errors import ConfigError
from workers.engine.model.config import load_model_config
from workers.engine.serving.device import MemoryBudget, kernels_for, open_device, pool_bytes

CPU = torch.device("cpu")


def config_of(folder: Path = BASE_DIR, **settings: Any) -> EngineConfig:
    return EngineConfig(model=str(folder), kernels="triton", **settings)


def test_a_cards_kernels_on_a_cpu_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    with pytest.raises(ConfigError, match=r"kernels is 'triton' and device is 'cpu'.*set TRITON_INTERPRET=1"):
        open_device(config_of(), device_facts("cpu"))


def test_blocks_that_a_cards_attention_does_not_take_are_refused_by_name() -> None:
    message = "block_size is 48; a GPU's attention takes 16, 32, 64, 128, 256 or 512"

    with pytest.raises(ConfigError, match=message):
        kernels_for(config_of(block_size=48), load_model_config(BASE_DIR), CPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quantised_weights_can_stay_so_in_every_dtype(dtype: str) -> None:
    config = config_of(quantization="int8", dtype=dtype)

    assert kernels_for(config, load_model_config(BASE_DIR), CPU).quantized_linear is not None


def test_experts_are_served_but_for_weights_that_stay_quantised(tmp_path: Path) -> None:
    folder = save_base(SPARSE_CASES["mixtral"](), tmp_path)
    model = load_model_config(folder)

    assert kernels_for(config_of(folder), model, CPU).grouped_linear is not None
    kernels_for(config_of(folder, quantization="int8", quant_storage="dequantize"), model, CPU)
    with pytest.raises(
        ConfigError,
        match="the weights of experts cannot stay quantised on a GPU; give quant_storage='dequantize'",
    ):
        kernels_for(config_of(folder, quantization="int8"), model, CPU)


def test_adapters_get_room_for_the_largest_and_no_less() -> None:
    assert pool_bytes(config_of(max_loras=3), CPU, 200 << 20) == 600 << 20
    assert pool_bytes(config_of(max_loras=3), CPU, 1 << 20) == 256 << 20
    assert pool_bytes(config_of(lora_pool_bytes=5000), CPU, 4000) == 5000
    with pytest.raises(
        ConfigError, match=r"lora_pool_bytes is 3000, but one adapter of max_lora_rank .64.* 4000"
    ):
        pool_bytes(config_of(lora_pool_bytes=3000), CPU, 4000)


def test_a_budget_says_where_a_cards_memory_goes() -> None:
    gib = 1 << 30
    budget = MemoryBudget(card=80 * gib, allowed=72 * gib, held=20 * gib, step=2 * gib, graphs=gib)

    assert budget.cache == 49 * gib
    assert str(budget) == (
        "72.00 GiB of 80.00 are allowed; weights, adapters and context take 20.00, the largest step 2.00, "
        "captured steps 1.00; 49.00 are left for keys and values"
    )


def test_random_weights_need_no_files_and_answer(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((BASE_DIR / name).read_bytes())

    held = []
    for quantization in (None, "int8", "bitsandbytes"):
        config = EngineConfig(model=str(tmp_path), load_format="dummy", quantization=quantization)
        with LLMEngine(config) as engine:
            (output,) = engine.generate(["hello>"], SamplingParams(max_tokens=2), use_tqdm=False)
            held.append(engine.info.linear_bytes)
        assert output.outputs[0].token_ids

    plain, int8, nf4 = held
    assert 0.25 < int8 / plain < 0.27  # of float32
    assert 0.14 < nf4 / plain < 0.15
