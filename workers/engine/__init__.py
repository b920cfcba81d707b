"""The multi-LoRA inference engine: one base model, many adapters, one mixed batch."""

from __future__ import annotations

from workers.engine.core.config import EngineConfig
from workers.engine.core.outputs import (
    CompletionOutput,
    Logprob,
    RequestFailure,
    RequestMetrics,
    RequestOutput,
)
from workers.engine.core.sampling_params import RequestOutputKind, SamplingParams
from workers.engine.lora import LoRAMix, LoRARequest
from workers.engine.serving.assembly import EngineInfo
from workers.engine.serving.engine import LLMEngine
from workers.engine.serving.engine_counters import EngineStats
from workers.engine.serving.process import EngineProcess
from workers.engine.structured_output import StructuredOutputsParams

__all__ = [
    "EngineConfig",
    "LLMEngine",
    "LoRARequest",
    "LoRAMix",
    "SamplingParams",
    "RequestOutputKind",
    "StructuredOutputsParams",
    "RequestOutput",
    "CompletionOutput",
    "Logprob",
    "RequestMetrics",
    "RequestFailure",
    "EngineInfo",
    "EngineStats",
    "EngineProcess",
]
