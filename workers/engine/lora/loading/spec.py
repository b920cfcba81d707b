"""What every load of one engine has in common, and what is said to the loader process and back."""

from __future__ import annotations

from dataclasses import dataclass

from workers.engine.core.errors import AdapterError
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.adapter_files import Stamp
from workers.engine.lora.files.base import BaseDescription
from workers.engine.lora.tables.adapter_weights import AdapterWeights

DEFAULT_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """The base that adapters must fit, and the limits of each."""

    base: BaseDescription
    max_rank: int
    dtype: str  # of the packed weights, as torch names it
    head_dtype: str | None = None  # of whole heads, which are read as the base's is; None: the same
    target_modules: tuple[str, ...] | None = None  # that adapters may change; None means all
    max_bytes: int | None = None  # of one packed adapter's LoRA
    max_saved_bytes: int | None = None  # of the whole modules that one brings
    timeout_s: float = DEFAULT_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Ready:
    """The loader process has imported what it needs and takes work."""


@dataclass(frozen=True, slots=True)
class Load:
    """Read, check and pack this adapter; loads are answered in order."""

    request: LoRARequest


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of a load: weights, or the reason there are none."""

    files: Stamp | None  # their state just before they were read
    weights: AdapterWeights | None
    error: AdapterError | None
    load_ms: float
