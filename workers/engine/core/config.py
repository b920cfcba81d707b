"""What the engine is told once, at its start; checked here, never changed afterwards."""

from __future__ import annotations

import re
from dataclasses import dataclass

from workers.engine.core.errors import ConfigError

_DTYPES = ("float32", "bfloat16", "float16")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_KERNELS = (None, "triton")
_LOAD_FORMATS = ("auto", "dummy")
_GENERATION_CONFIGS = ("auto", "none")
_MAX_LORA_RANK = 512
_POSITIVE = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "max_loras",
    "max_lora_rank",
    "max_saved_module_bytes",
    "max_queued_lora_loads",
)
_POSITIVE_OR_NONE = (
    "max_model_len",
    "kv_cache_bytes",
    "num_kv_blocks",
    "max_cpu_loras",
    "max_cpu_lora_bytes",
    "num_threads",
    "lora_pool_bytes",
)
_QUANTIZATIONS = (None, "int8", "bitsandbytes", "awq", "gptq", "mxfp4")
_QUANT_STORAGES = ("keep", "dequantize")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits and places; `max_model_len=None` means the checkpoint's own limit, at most 2048.

    `quantization` None serves a checkpoint as it is, quantised or plain. On a plain one "int8" quantises the
    linear modules to int8 rows while they load, and "bitsandbytes" to NF4. "bitsandbytes", "awq", "gptq" and
    "mxfp4" insist on a checkpoint that is quantised so. `quant_storage` "dequantize" trades memory for the
    speed of plain weights.

    `device` is "cpu", "cuda" or "cuda:N". `kernels` None takes the best that the device has; "triton" on the
    CPU runs the GPU's kernels in Triton's interpreter, to test them. On a GPU `gpu_memory_utilization` is the
    share of the card's memory that the engine may use for all it holds; `lora_pool_bytes` is what of it
    adapters get, None for as much as `max_loras` of the largest need, at most a tenth of the card.
    `enforce_eager` launches every kernel by itself instead of replaying CUDA graphs. `load_format` "dummy"
    makes random weights after the checkpoint's config, for measuring: its folder then needs no weights.
    `generation_config` "auto" takes what requests leave unset from the checkpoint's generation_config.json,
    "none" leaves it as vLLM's `SamplingParams` has it; tokens that end a text are read in both cases.
    `batch_invariant` has a request's tokens and log-probabilities come out with the same bits whatever is
    computed beside it, at a price (docs/processors.md); a CPU's kernels only.
    """

    model: str
    device: str = "cpu"
    dtype: str = "float32"
    kernels: str | None = None
    load_format: str = "auto"
    generation_config: str = "auto"
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    batch_invariant: bool = False
    quantization: str | None = None
    quant_storage: str = "keep"
    max_num_seqs: int = 32
    max_model_len: int | None = None
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    kv_cache_bytes: int | None = None
    num_kv_blocks: int | None = None
    enable_prefix_caching: bool = True
    enable_lora: bool = False
    max_loras: int = 4
    max_lora_rank: int = 64
    max_cpu_loras: int | None = None
    lora_target_modules: tuple[str, ...] | None = None
    max_saved_module_bytes: int = 1 << 30
    lora_pool_bytes: int | None = None
    max_cpu_lora_bytes: int | None = None
    max_queued_lora_loads: int = 256
    lora_load_timeout_s: float = 60.0
    seed: int = 0
    served_model_name: str | None = None
    num_threads: int | None = None

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            self._require_positive(name)
        for name in _POSITIVE_OR_NONE:
            if getattr(self, name) is not None:
                self._require_positive(name)
        self._require_seconds("lora_load_timeout_s")
        self._require_one_of("dtype", _DTYPES)
        self._require_one_of("kernels", _KERNELS)
        self._require_one_of("load_format", _LOAD_FORMATS)
        self._require_one_of("generation_config", _GENERATION_CONFIGS)
        self._require_device()
        self._require_one_of("quantization", _QUANTIZATIONS)
        self._require_one_of("quant_storage", _QUANT_STORAGES)
        self._require_lora_limits()
        self._require_consistent()

    @property
    def host_cache_capacity(self) -> int:
        """Number of adapters kept in host memory."""
        return self.max_loras if self.max_cpu_loras is None else self.max_cpu_loras

    def _require_positive(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; give a positive integer")

    def _require_seconds(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value!r}; give a positive number of seconds")

    def _require_one_of(self, name: str, allowed: tuple[str | None, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ConfigError(f"{name} is {value!r}; this engine serves {', '.join(map(str, allowed))}")

    def _require_device(self) -> None:
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise ConfigError(f"device is {self.device!r}; this engine serves cpu, cuda, cuda:N")
        share = self.gpu_memory_utilization
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ConfigError(f"gpu_memory_utilization is {share!r}; give a share above 0, at most 1")

    def _require_lora_limits(self) -> None:
        if self.max_lora_rank > _MAX_LORA_RANK:
            raise ConfigError(f"max_lora_rank is {self.max_lora_rank}; give at most {_MAX_LORA_RANK}")
        names = self.lora_target_modules
        if names is not None and (
            not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names)
        ):
            raise ConfigError(
                f"lora_target_modules is {names!r}; give a tuple of module names, or None for all modules"
            )

    def _require_consistent(self) -> None:
        if self.dtype == "float16" and self.device == "cpu" and self.kernels is None:
            raise ConfigError(
                "dtype is 'float16', which the CPU's kernels do not have; give bfloat16 or float32"
            )
        if self.batch_invariant and (self.device != "cpu" or self.kernels is not None):
            raise ConfigError(
                f"batch_invariant is True, device {self.device!r} and kernels {self.kernels!r}: a card's "
                "kernels give a row other bits in other batches; give device='cpu' without kernels, or leave "
                "batch_invariant out"
            )
        if self.block_size % 16:
            raise ConfigError(f"block_size is {self.block_size}; give a multiple of 16")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, below max_num_seqs "
                f"({self.max_num_seqs}): every running sequence needs one token a step; "
                "raise the first or lower the second"
            )
        if self.host_cache_capacity < self.max_loras:
            raise ConfigError(
                f"max_cpu_loras is {self.max_cpu_loras}, below max_loras ({self.max_loras}); "
                f"raise it to {self.max_loras}"
            )
        if self.kv_cache_bytes is not None and self.num_kv_blocks is not None:
            raise ConfigError(
                "kv_cache_bytes and num_kv_blocks both set the size of the KV cache; give one of them"
            )
