"""The multi-LoRA inference engine: one base model, many adapters, one mixed batch."""

from __future__ import annotations

from workers.engine.accounts import EngineStats
from workers.engine.assembly import EngineInfo
from workers.engine.config import EngineConfig
from workers.engine.engine import LLMEngine
from workers.engine.lora import LoRAMix, LoRARequest
from workers.engine.outputs import CompletionOutput, Logprob, RequestFailure, RequestMetrics, RequestOutput
from workers.engine.process import EngineProcess
from workers.engine.sampling.sampling_params import RequestOutputKind, SamplingParams
from workers.engine.structure import StructuredOutputsParams

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
