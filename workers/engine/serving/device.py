"""Opens the device that an engine is told to use, and shares out a GPU's memory."""

from __future__ import annotations

import gc
import os
from typing import NamedTuple

import torch

from kernels.registry import Kernels, build
from workers.engine.core.config import EngineConfig
from workers.engine.core.device_facts import DeviceFacts
from workers.engine.core.errors import ConfigError
from workers.engine.kv.kv_cache import KVCache
from workers.engine.model.config import ModelConfig
from workers.engine.model.decoder import Decoder
from workers.engine.scheduling.step_layout import MIXED_BUCKETS, StepLayout
from workers.engine.serving.step_graphs import StepGraphs, idle_step, on_device

_LEAST_CAPABILITY = (8, 0)
_POOL_SHARE = 10
"""Adapters get a tenth of the card at most, unless they are given more."""
_LEAST_POOL_BYTES = 256 << 20
"""Room for what adapters may bring beyond LoRA of linear modules: biases, DoRA, embeddings and heads."""
_GIB = 1 << 30


def open_device(config: EngineConfig, facts: DeviceFacts) -> torch.device:
    """Return the device, ready for use; ConfigError for one that cannot run the kernels."""
    device = torch.device(facts.device)
    if device.type == "cpu":
        if config.kernels == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ConfigError(
                "kernels is 'triton' and device is 'cpu': a CPU runs them in Triton's interpreter only; "
                "set TRITON_INTERPRET=1 before Python starts, or leave kernels out"
            )
        return device
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        raise ConfigError(
            f"{facts.device_name} has compute capability {capability[0]}.{capability[1]}; the kernels need "
            f"{_LEAST_CAPABILITY[0]}.{_LEAST_CAPABILITY[1]} or more"
        )
    torch.cuda.set_device(device)
    return device


def kernels_for(config: EngineConfig, model: ModelConfig, device: torch.device) -> Kernels:
    """Return the kernels of the device; ConfigError for what they do not serve yet."""
    kernels = build(
        device.type,
        getattr(torch, config.dtype),
        "triton" if config.kernels == "triton" else None,
        batch_invariant=config.batch_invariant,
    )
    if config.batch_invariant and not kernels.attends_in_place(config.block_size):
        raise ConfigError(
            f"block_size is {config.block_size} and batch_invariant True: attention that does not depend on "
            "the batch takes 16, 32, 64, 128, 256 or 512"
        )
    if kernels.level != "triton":
        return kernels
    is_quantized = model.quantization is not None or config.quantization is not None
    if is_quantized and config.quant_storage == "keep" and model.has_experts:
        raise ConfigError(
            f"{config.model}: the weights of experts cannot stay quantised on a GPU; give "
            "quant_storage='dequantize', or device='cpu'"
        )
    if not kernels.attends_in_place(config.block_size):
        raise ConfigError(
            f"block_size is {config.block_size}; a GPU's attention takes 16, 32, 64, 128, 256 or 512"
        )
    return kernels


def pool_bytes(config: EngineConfig, device: torch.device, largest_adapter_bytes: int) -> int:
    """Return the bytes that adapters get on the device; ConfigError if the largest one does not fit."""
    wanted = max(_LEAST_POOL_BYTES, config.max_loras * largest_adapter_bytes)
    if config.lora_pool_bytes is None and device.type == "cuda":
        card = torch.cuda.get_device_properties(device).total_memory
        return max(largest_adapter_bytes, min(wanted, card // _POOL_SHARE))
    if config.lora_pool_bytes is not None and config.lora_pool_bytes < largest_adapter_bytes:
        raise ConfigError(
            f"lora_pool_bytes is {config.lora_pool_bytes}, but one adapter of max_lora_rank "
            f"({config.max_lora_rank}) on all modules takes {largest_adapter_bytes} bytes; raise the first, "
            "lower the second, or give lora_target_modules"
        )
    return config.lora_pool_bytes or wanted


class MemoryBudget(NamedTuple):
    """What a card's memory goes to, in bytes."""

    card: int
    allowed: int  # gpu_memory_utilization of it
    held: int  # weights, adapters, the context, and what other processes hold
    step: int  # the largest step, beyond what is held
    graphs: int

    @property
    def cache(self) -> int:
        """What is left for keys and values; negative if it does not suffice for the rest."""
        return self.allowed - self.held - self.step - self.graphs

    def __str__(self) -> str:
        """Return it in GiB."""
        return (
            f"{self.allowed / _GIB:.2f} GiB of {self.card / _GIB:.2f} are allowed; weights, adapters and "
            f"context take {self.held / _GIB:.2f}, the largest step {self.step / _GIB:.2f}, captured steps "
            f"{self.graphs / _GIB:.2f}; {self.cache / _GIB:.2f} are left for keys and values"
        )


def measure(
    decoder: Decoder, cache: KVCache, layout: StepLayout, config: EngineConfig, device: torch.device
) -> MemoryBudget:
    """Run the largest step, and capture the largest shape, against a cache of the scratch block alone."""
    _tidy()
    free, card = torch.cuda.mem_get_info(device)
    held = card - free
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    warm_up(decoder, cache, layout, config, device)
    step = torch.cuda.max_memory_allocated(device) - before
    graphs_bytes = 0
    if not config.enforce_eager:
        _tidy()
        before = torch.cuda.mem_get_info(device)[0]
        graphs = StepGraphs(layout.fixed_shapes()[:1])
        graphs.capture(decoder, cache, device)
        torch.cuda.synchronize(device)
        # One pool serves them all, and the largest shape sets its size; the rest is the graphs' own.
        graphs_bytes = 2 * max(0, before - torch.cuda.mem_get_info(device)[0])
        del graphs
    _tidy()
    allowed = int(card * config.gpu_memory_utilization)
    return MemoryBudget(card, allowed, held, step, graphs_bytes)


def warm_up(
    decoder: Decoder, cache: KVCache, layout: StepLayout, config: EngineConfig, device: torch.device
) -> None:
    """Compile what steps need, and run the largest one that there can be."""
    rows = torch.arange(config.max_num_seqs, device=device)
    with torch.inference_mode():
        for num_tokens in _sizes(config.max_num_batched_tokens):
            for has_adapters in (False, True) if config.enable_lora else (False,):
                step = on_device(idle_step(layout.large(num_tokens), has_adapters=has_adapters), device)
                hidden = decoder.forward(step, cache)
                decoder.logits(hidden, rows, None)
    torch.cuda.synchronize(device)


def _sizes(largest: int) -> list[int]:
    """Return sizes of steps, each at most twice the one before: tiles of experts change more rarely."""
    sizes = [largest]
    while sizes[-1] > 2 * MIXED_BUCKETS[-1]:
        sizes.append(sizes[-1] // 2)
    return sizes


def _tidy() -> None:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
