"""Configurations that cannot work are refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workers.engine import EngineConfig, LLMEngine
from workers.engine.core.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is 0; give a positive integer"),
        ({"max_loras": "4"}, "max_loras is '4'"),
        ({"num_kv_blocks": -1}, "num_kv_blocks is -1"),
        ({"dtype": "float64"}, "dtype is 'float64'; this engine serves float32, bfloat16, float16"),
        ({"dtype": "float16"}, "dtype is 'float16', which the CPU's kernels do not have; give bfloat16"),
        ({"device": "tpu"}, "device is 'tpu'; this engine serves cpu, cuda, cuda:N"),
        ({"device": "cuda:one"}, "device is 'cuda:one'; this engine serves cpu, cuda, cuda:N"),
        ({"kernels": "mkl"}, "kernels is 'mkl'; this engine serves None, triton"),
        ({"load_format": "gguf"}, "load_format is 'gguf'; this engine serves auto, dummy"),
        ({"generation_config": "vllm"}, "generation_config is 'vllm'; this engine serves auto, none"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization is 1.5; give a share above 0, at most 1"),
        ({"lora_pool_bytes": 0}, "lora_pool_bytes is 0; give a positive integer"),
        (
            {"quantization": "fp8"},
            "quantization is 'fp8'; this engine serves None, int8, bitsandbytes, awq, gptq",
        ),
        ({"quant_storage": "drop"}, "quant_storage is 'drop'; this engine serves keep, dequantize"),
        ({"batch_invariant": True, "device": "cuda:1"}, "batch_invariant is True, device 'cuda:1'"),
        ({"batch_invariant": True, "kernels": "triton"}, "kernels 'triton': .* or leave batch_invariant out"),
        ({"block_size": 24}, "block_size is 24; give a multiple of 16"),
        ({"max_num_batched_tokens": 8}, "max_num_batched_tokens is 8, below max_num_seqs"),
        ({"max_cpu_loras": 2}, r"max_cpu_loras is 2, below max_loras \(4\); raise it to 4"),
        ({"num_kv_blocks": 9, "kv_cache_bytes": 9}, "give one of them"),
        ({"max_lora_rank": 0}, "max_lora_rank is 0; give a positive integer"),
        ({"max_lora_rank": 513}, "max_lora_rank is 513; give at most 512"),
        ({"max_saved_module_bytes": 0}, "max_saved_module_bytes is 0; give a positive integer"),
        ({"lora_target_modules": ()}, r"lora_target_modules is \(\); give a tuple of module names"),
        ({"lora_target_modules": "q_proj"}, "lora_target_modules is 'q_proj'; give a tuple"),
    ],
)
def test_an_impossible_value_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(model="anything", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": 257}, "made for 256 positions; lower it to 256"),
        ({"num_kv_blocks": 15}, r"15 blocks, one sequence of max_model_len \(256\) needs 16"),
        ({"enable_lora": True, "lora_target_modules": ("c_attn",)}, "'c_attn', which this base lacks"),
        ({"enable_lora": True, "max_cpu_lora_bytes": 999}, r"is 999, but one adapter .* takes \d+ bytes"),
        ({"batch_invariant": True, "block_size": 48}, "block_size is 48 and batch_invariant True.* takes 16"),
        ({"kv_cache_bytes": 10_000}, "raise num_kv_blocks or kv_cache_bytes, or lower max_model_len"),
    ],
)
def test_what_the_checkpoint_cannot_do_is_refused(
    make_engine: Callable[..., LLMEngine], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_engine(**settings)


def test_the_cache_is_as_large_as_asked_for(make_engine: Callable[..., LLMEngine]) -> None:
    # 3 layers, keys and values, 2 heads of 16 numbers for 16 positions, 4 bytes each
    block_bytes = 3 * 2 * 2 * 16 * 16 * 4

    assert make_engine(kv_cache_bytes=20 * block_bytes + 5).info.num_kv_blocks == 20
    assert make_engine(num_kv_blocks=33).info.num_kv_blocks == 33
    assert make_engine(max_num_seqs=3).info.num_kv_blocks == 3 * 16
