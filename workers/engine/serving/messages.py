"""What is said to an engine in another process, and what it answers: plain values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workers.engine.core.config import EngineConfig
from workers.engine.core.engine_info import EngineInfo
from workers.engine.core.lora_request import AnyLoRA, LoRARequest
from workers.engine.core.outputs import RequestOutput
from workers.engine.core.pickled_by_position import pickled_by_position
from workers.engine.core.residency_change import ResidencyChange
from workers.engine.core.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Start:
    """The first message: what to build, and the inherited memory to tell of it in (`StepBoard`)."""

    config: EngineConfig
    board_file: int
    board_bytes: int


@pickled_by_position
@dataclass(frozen=True, slots=True)
class AddRequest:
    """Serve a request; exactly one of `prompt` and `messages` is given."""

    request_id: str
    prompt: str | list[int] | None
    messages: list[dict[str, Any]] | None
    params: SamplingParams
    lora: AnyLoRA | None
    cache_salt: str | None = None  # only requests of one salt share cached prefixes


@pickled_by_position
@dataclass(frozen=True, slots=True)
class AbortRequest:
    """End a request; it answers with finish_reason "abort", unless it had ended already."""

    request_id: str


@dataclass(frozen=True, slots=True)
class PrefetchAdapter:
    """Load an adapter into the host cache, if there is room."""

    lora: LoRARequest


@dataclass(frozen=True, slots=True)
class DropAdapter:
    """Forget an adapter, unless sequences are using it."""

    lora: LoRARequest


@dataclass(frozen=True, slots=True)
class PlanResidency:
    """Expect these adapters to be needed, in order, and those not; replaces the last such plan."""

    wanted: tuple[LoRARequest, ...]
    drop: tuple[LoRARequest, ...] = ()


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process, whatever it holds."""


Command = AddRequest | AbortRequest | PrefetchAdapter | DropAdapter | PlanResidency | Stop


@pickled_by_position
@dataclass(frozen=True, slots=True)
class Started:
    """A request joined the running batch for the first time."""

    request_id: str


@pickled_by_position
@dataclass(frozen=True, slots=True)
class TokenDelta:
    """What is new of a completion that streams; text is held back while later tokens may change it."""

    request_id: str
    index: int
    text: str
    num_tokens: int


@pickled_by_position
@dataclass(frozen=True, slots=True)
class EngineEvents:
    """What changed with a step or a command, and how much room there is now."""

    started: tuple[Started, ...]
    finished: tuple[RequestOutput, ...]
    residency: tuple[ResidencyChange, ...]
    epoch: int
    free_seqs: int
    free_kv_blocks: int
    busy_ms: float  # since the start
    waiting: int
    deltas: tuple[TokenDelta, ...] = ()  # in order; those of a request that finished come before its end


@dataclass(frozen=True, slots=True)
class DeviceFailed:
    """The engine's last word: its device has failed, and all that it held is lost."""

    message: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine is built and takes commands."""

    info: EngineInfo


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The engine could not be built."""

    code: str
    message: str
