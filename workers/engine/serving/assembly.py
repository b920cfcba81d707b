"""Builds an engine's parts from its configuration and the checkpoint it names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from kernels.registry import Kernels
from kernels.sampling.draw import Draw
from workers.engine.core.config import EngineConfig
from workers.engine.core.device_facts import DeviceFacts, device_facts
from workers.engine.core.engine_info import EngineInfo
from workers.engine.core.errors import ConfigError
from workers.engine.core.processors import num_processors
from workers.engine.core.sampling_defaults import SamplingDefaults
from workers.engine.kv.kv_cache import BlockAllocator, KVCache
from workers.engine.kv.prefix_cache import PrefixCache
from workers.engine.kv.prefix_keys import base_fingerprint
from workers.engine.lora.files.base import BaseDescription, describe_base
from workers.engine.lora.files.limits import check_limits, largest_adapter_bytes
from workers.engine.lora.loading import LoaderChild, start_process
from workers.engine.lora.residency.adapter_memory import DeviceMemory
from workers.engine.lora.residency.copier import copier_for
from workers.engine.lora.residency.manager import LoRAManager
from workers.engine.lora.tables.dora import DoraTerms
from workers.engine.model.config import ModelConfig, load_model_config
from workers.engine.model.decoder import Decoder
from workers.engine.model.generation_config import read_sampling_defaults
from workers.engine.model.layers.attention_backend import choose_attention
from workers.engine.model.quantization import Quantize, in_flight, random_codes
from workers.engine.model.weights import DecoderWeights, load_weights, random_weights
from workers.engine.scheduling.batching import Batcher
from workers.engine.scheduling.step_builder import StepBuilder
from workers.engine.scheduling.step_layout import StepLayout
from workers.engine.serving.compute_threads import ComputeThreads
from workers.engine.serving.device import kernels_for, measure, open_device, pool_bytes
from workers.engine.serving.device_executor import DeviceExecutor
from workers.engine.serving.executor import Executor, LocalExecutor
from workers.engine.serving.input_processor import InputProcessor
from workers.engine.serving.output_processor import OutputProcessor
from workers.engine.serving.step_graphs import StepGraphs
from workers.engine.structured_output import GrammarCompiler
from workers.engine.text.tokenizer import Tokenizer

_DEFAULT_MAX_MODEL_LEN = 2048
_DEFAULT_KV_CACHE_BYTES = 1 << 30


class EngineParts(NamedTuple):
    """What the engine's loop works with."""

    info: EngineInfo
    adapters: LoRAManager | None
    allocator: BlockAllocator
    prefixes: PrefixCache | None
    batcher: Batcher
    builder: StepBuilder
    executor: Executor
    input_processor: InputProcessor
    output_processor: OutputProcessor
    grammars: GrammarCompiler


def assemble(
    config: EngineConfig,
    *,
    look_ahead: int = 0,
    loader_child: LoaderChild | None = None,
    on_compiling: Callable[[], None] = lambda: None,
) -> EngineParts:
    """Load the checkpoint and connect the parts; raises `ConfigError` or `CheckpointError`.

    `look_ahead` is the executor's; a GPU's always looks ahead. `loader_child` has been started already.
    `on_compiling` is told when all is loaded.
    """
    torch.set_num_threads(config.num_threads or min(torch.get_num_threads(), num_processors()))
    facts = device_facts(config.device)
    device = open_device(config, facts)
    folder = Path(config.model)
    model = load_model_config(folder)
    defaults = read_sampling_defaults(folder) if config.generation_config == "auto" else SamplingDefaults()
    kernels = kernels_for(config, model, device)
    max_model_len = _max_model_len(config, model)
    tokenizer = Tokenizer.from_folder(folder)
    quantize = in_flight(config.quantization, model.quantization)
    if config.enable_lora and loader_child is None:
        loader_child = start_process()  # it starts while the weights are read
    weights = _weights(config, model, kernels, quantize, device)
    layout = _layout(config, max_model_len, device) if kernels.level == "triton" else None
    adapters = _adapters(config, model, weights, loader_child, device) if config.enable_lora else None
    attention = choose_attention(kernels, config.block_size)
    decoder = Decoder(model, weights, max_model_len=max_model_len, adapters=adapters, attention=attention)
    num_kv_blocks = _num_kv_blocks(
        config, model, max_model_len, _cache_bytes(config, model, decoder, layout, device)
    )
    allocator = BlockAllocator(num_kv_blocks + 1)
    cache = _kv_cache(config, model, allocator.num_blocks, device)
    prefixes = _prefix_cache(config, allocator, adapters) if config.enable_prefix_caching else None
    grammars = GrammarCompiler(
        tokenizer.source,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_token_ids,
        num_token_ids=tokenizer.num_ids,
    )
    on_compiling()
    info = _engine_info(config, model, kernels, facts, max_model_len, num_kv_blocks)
    return EngineParts(
        info=replace(info, linear_bytes=weights.linear_bytes, sampling_defaults=defaults),
        adapters=adapters,
        allocator=allocator,
        prefixes=prefixes,
        batcher=_batcher(config, allocator, adapters, prefixes),
        builder=StepBuilder(
            block_size=config.block_size,
            num_kv_heads=model.num_kv_heads,
            vocab_size=model.vocab_size,
            dtype=kernels.dtype,
            gathers_kv=attention.gathers,
            windows=model.windows,
            layout=layout,
        ),
        executor=LocalExecutor(
            decoder, cache, kernels.draw, look_ahead=look_ahead, threads=_compute_threads(config)
        )
        if layout is None
        else _device_executor(config, decoder, cache, kernels.draw, layout, device),
        input_processor=InputProcessor(
            tokenizer,
            vocab_size=model.vocab_size,
            max_model_len=info.max_model_len,
            max_loras=info.max_loras,
            seed=config.seed,
            eos_token_ids=model.eos_token_ids,
            grammars=grammars,
            defaults=defaults,
        ),
        grammars=grammars,
        output_processor=OutputProcessor(tokenizer, model.eos_token_ids),
    )


def _weights(
    config: EngineConfig,
    model: ModelConfig,
    kernels: Kernels,
    quantize: Quantize | None,
    device: torch.device,
) -> DecoderWeights:
    if config.load_format == "dummy":
        return random_weights(
            model,
            kernels.dtype,
            codes=random_codes(config.quantization, model.quantization),
            keep_quantized=config.quant_storage == "keep",
            kernels=kernels,
            device=device,
        )
    return load_weights(
        Path(config.model),
        model,
        kernels.dtype,
        in_flight=quantize,
        keep_quantized=config.quant_storage == "keep",
        kernels=kernels,
        device=device,
    )


def _compute_threads(config: EngineConfig) -> ComputeThreads | None:
    """Let the number of threads follow the machine, unless bits must not: libraries choose sums by it."""
    return None if config.batch_invariant else ComputeThreads(torch.get_num_threads())


def _layout(config: EngineConfig, max_model_len: int, device: torch.device) -> StepLayout:
    return StepLayout(
        config.max_num_seqs,
        -(-max_model_len // config.block_size),
        config.max_loras if config.enable_lora else 0,
        is_filled=device.type != "cpu",
    )


def _cache_bytes(
    config: EngineConfig,
    model: ModelConfig,
    decoder: Decoder,
    layout: StepLayout | None,
    device: torch.device,
) -> int | None:
    """Return what a card has left for keys and values; None where that is not measured."""
    if layout is None or device.type != "cuda":
        return None
    budget = measure(decoder, _kv_cache(config, model, 1, device), layout, config, device)
    if budget.cache <= 0:
        raise ConfigError(
            f"the card's memory does not suffice: {budget}; raise gpu_memory_utilization, or lower "
            "max_num_batched_tokens, lora_pool_bytes or max_loras"
        )
    return budget.cache


def _device_executor(
    config: EngineConfig,
    decoder: Decoder,
    cache: KVCache,
    draw: Draw,
    layout: StepLayout,
    device: torch.device,
) -> DeviceExecutor:
    graphs: StepGraphs | None = None
    if device.type == "cuda" and not config.enforce_eager:
        graphs = StepGraphs(layout.fixed_shapes())
        graphs.capture(decoder, cache, device)
    return DeviceExecutor(decoder, cache, draw, device, graphs=graphs)


def _engine_info(
    config: EngineConfig,
    model: ModelConfig,
    kernels: Kernels,
    facts: DeviceFacts,
    max_model_len: int,
    num_kv_blocks: int,
) -> EngineInfo:
    folder_name = Path(config.model).absolute().name
    return EngineInfo(
        model=config.model,
        served_model_name=config.served_model_name or model.name or folder_name,
        dtype=config.dtype,
        vocab_size=model.vocab_size,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=config.block_size,
        num_kv_blocks=num_kv_blocks,
        max_loras=config.max_loras if config.enable_lora else 0,
        max_lora_rank=config.max_lora_rank,
        quantization=config.quantization if model.quantization is None else model.quantization.quant_method,
        quant_storage=config.quant_storage,
        is_tied=model.tie_word_embeddings,
        linear_bytes=0,  # known once they are loaded
        cpu_kernels=kernels.level,
        **facts._asdict(),
    )


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    limit = model.max_positions
    if config.max_model_len is None:
        return min(limit, _DEFAULT_MAX_MODEL_LEN)
    if config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but {config.model} was made for {limit} positions; "
            f"lower it to {limit}"
        )
    return config.max_model_len


def _num_kv_blocks(
    config: EngineConfig, model: ModelConfig, max_model_len: int, measured_bytes: int | None
) -> int:
    """Return the usable blocks, scratch not counted; one sequence of full length must fit.

    `measured_bytes` is what a card has left for them.
    """
    needed = -(-max_model_len // config.block_size)
    element_bytes = getattr(torch, config.dtype).itemsize
    block_bytes = (
        2 * model.num_layers * model.num_kv_heads * config.block_size * model.head_dim * element_bytes
    )
    if config.num_kv_blocks is not None:
        num_blocks = config.num_kv_blocks
    elif config.kv_cache_bytes is not None:
        num_blocks = config.kv_cache_bytes // block_bytes
    elif measured_bytes is not None:
        num_blocks = min(measured_bytes // block_bytes - 1, needed * config.max_num_seqs)
    else:
        affordable = max(needed, _DEFAULT_KV_CACHE_BYTES // block_bytes)
        num_blocks = min(affordable, needed * config.max_num_seqs)
    if num_blocks < needed:
        raise ConfigError(
            f"the KV cache has {num_blocks} blocks, one sequence of max_model_len ({max_model_len}) needs "
            f"{needed} ({needed * block_bytes} bytes); raise num_kv_blocks "
            "or kv_cache_bytes, or lower max_model_len; on a GPU raise gpu_memory_utilization"
        )
    return num_blocks


def _adapters(
    config: EngineConfig,
    model: ModelConfig,
    weights: DecoderWeights,
    loader_child: LoaderChild | None,
    device: torch.device,
) -> LoRAManager:
    base = describe_base(config.model, name=config.served_model_name, config=model)
    dtype = weights.kernels.dtype
    check_limits(
        base,
        rank=config.max_lora_rank,
        dtype=dtype,
        target_modules=config.lora_target_modules,
        max_bytes=config.max_cpu_lora_bytes,
    )
    dora = DoraTerms(weights.linear, weights.embedding, weights.head.weight)
    return LoRAManager(
        base.shapes,
        layout=base.layout,
        parameters=base.parameters,
        num_layers=base.num_layers,
        max_loras=config.max_loras,
        max_cpu_loras=config.host_cache_capacity,
        max_lora_rank=config.max_lora_rank,
        max_cpu_lora_bytes=config.max_cpu_lora_bytes,
        max_queued_lora_loads=config.max_queued_lora_loads,
        lora_load_timeout_s=config.lora_load_timeout_s,
        dtype=dtype,
        device=device,
        base_name=base.name,
        base_chats=base.chats,
        vocabulary=base.vocabulary,
        target_modules=config.lora_target_modules,
        max_saved_module_bytes=config.max_saved_module_bytes,
        dora=dora,
        kernels=weights.kernels,
        loader_child=loader_child,
        memory=_adapter_memory(config, base, dtype, device) if weights.kernels.level == "triton" else None,
    )


def _adapter_memory(
    config: EngineConfig, base: BaseDescription, dtype: torch.dtype, device: torch.device
) -> DeviceMemory:
    largest = largest_adapter_bytes(
        base, rank=config.max_lora_rank, dtype=dtype, target_modules=config.lora_target_modules
    )
    arena = torch.empty(pool_bytes(config, device, largest), dtype=torch.uint8, device=device)
    return DeviceMemory(arena, copier_for(device))


def _prefix_cache(
    config: EngineConfig, allocator: BlockAllocator, adapters: LoRAManager | None
) -> PrefixCache:
    base = base_fingerprint(Path(config.model))
    return PrefixCache(allocator, adapters, base=base, dtype=config.dtype, block_size=config.block_size)


def _batcher(
    config: EngineConfig,
    allocator: BlockAllocator,
    adapters: LoRAManager | None,
    prefixes: PrefixCache | None,
) -> Batcher:
    return Batcher(
        allocator,
        adapters,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        prefixes=prefixes,
    )


def _kv_cache(config: EngineConfig, model: ModelConfig, num_blocks: int, device: torch.device) -> KVCache:
    return KVCache(
        num_layers=model.num_layers,
        num_blocks=num_blocks,
        num_kv_heads=model.num_kv_heads,
        block_size=config.block_size,
        head_dim=model.head_dim,
        dtype=getattr(torch, config.dtype),
        device=device,
    )
