"""What an engine tells of itself once it is built."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.engine.core.sampling_defaults import SamplingDefaults


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The limits an engine ended up with, for those who send it work."""

    model: str
    served_model_name: str
    dtype: str
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_kv_blocks: int
    max_loras: int  # 0 = LoRA is off
    max_lora_rank: int
    quantization: str | None  # "bitsandbytes", "awq", "gptq" or "int8"; None: the linear modules are plain
    quant_storage: str  # "keep" or "dequantize"
    linear_bytes: int  # what the linear modules of the layers hold
    cpu_kernels: str  # "avx512_bf16", "avx2", or "torch" if none are compiled
    is_tied: bool = False  # the head is the embedding
    sampling_defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    """What requests get that leave these unset."""
    device: str = "cpu"  # or "cuda:N"
    device_name: str | None = None  # this and the next two are a card's
    device_memory_bytes: int | None = None
    driver_version: str | None = None
    torch_version: str | None = None
