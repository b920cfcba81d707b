"""The multi-LoRA inference engine: one base model, many adapters, one mixed batch.

What computes is imported when it is first asked for: a process that only talks to an engine loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from workers.engine.core.config import EngineConfig
from workers.engine.core.engine_info import EngineInfo
from workers.engine.core.lora_request import LoRAMix, LoRARequest
from workers.engine.core.outputs import (
    CompletionOutput,
    Logprob,
    RequestFailure,
    RequestMetrics,
    RequestOutput,
)
from workers.engine.core.sampling_params import RequestOutputKind, SamplingParams
from workers.engine.core.structured_outputs import StructuredOutputsParams
from workers.engine.serving.process import EngineProcess

if TYPE_CHECKING:
    from workers.engine.serving.engine import LLMEngine
    from workers.engine.serving.engine_counters import EngineStats

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

_MODULE_OF = {
    "LLMEngine": "workers.engine.serving.engine",
    "EngineStats": "workers.engine.serving.engine_counters",
}
"""What loads torch with it."""

if not TYPE_CHECKING:  # mypy would take every name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(_MODULE_OF[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
