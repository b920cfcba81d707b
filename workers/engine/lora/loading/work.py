"""One load from beginning to end: read, check, pack; whatever goes wrong is an answer."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from workers.engine.core.errors import AdapterError, AdapterIOError, AdapterLoadTimeout, AdapterTooLarge
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.adapter_files import stamp
from workers.engine.lora.files.validate import (
    AdapterDescription,
    CheckedAdapter,
    adapter_label,
    check_adapter,
)
from workers.engine.lora.loading.spec import Loaded, LoadSpec
from workers.engine.lora.tables.adapter_weights import AdapterWeights, pack_adapter

_NUM_RINGS = 10
"""The alarm rings so often until the time is over. Of a stop it rings once, however long that was: only time
in which the process ran counts."""

_REPEAT_S = 0.5
"""An alarm that falls into a destructor is swallowed there, so it rings again."""


class _OutOfTime(BaseException):
    """Not an Exception: nothing on the way may mistake it for a fault of the adapter."""


def load(request: LoRARequest, spec: LoadSpec) -> Loaded:
    """Load an adapter within the time allowed; call it in a process's main thread."""
    started = time.perf_counter()
    files = stamp(Path(request.lora_path))
    weights, error = _attempt(request, spec)
    return Loaded(files, weights, error, (time.perf_counter() - started) * 1000.0)


def try_adapter(request: LoRARequest, spec: LoadSpec) -> AdapterDescription:
    """Load an adapter as the loader process would, within its limits, and tell what it is.

    Raises the AdapterError that fits; call it in a process's main thread.
    """
    try:
        with _time_limit(spec.timeout_s):
            return _load(request, spec)[0].description
    except _OutOfTime:
        raise _too_slow(request, spec) from None


def load_adapter(request: LoRARequest, spec: LoadSpec) -> AdapterWeights:
    """Read an adapter once, check it and pack it for the kernels; raises the AdapterError that fits."""
    return _load(request, spec)[1]


def _load(request: LoRARequest, spec: LoadSpec) -> tuple[CheckedAdapter, AdapterWeights]:
    checked = check_adapter(
        request.lora_path,
        base=spec.base,
        max_rank=spec.max_rank,
        name=request.lora_name,
        revision=request.revision,
        target_modules=spec.target_modules,
        base_name=request.base_model_name,
    )
    weights = pack_adapter(
        checked,
        shapes=spec.base.shapes,
        layout=spec.base.layout,
        dtype=getattr(torch, spec.dtype),
        head_dtype=getattr(torch, spec.head_dtype or spec.dtype),
    )
    if spec.max_bytes is not None and weights.num_bytes > spec.max_bytes:
        raise AdapterTooLarge(
            f"{checked.label}: its LoRA takes {weights.num_bytes} bytes, but max_cpu_lora_bytes is "
            f"{spec.max_bytes}; raise it, or train with a lower rank or fewer modules"
        )
    if spec.max_saved_bytes is not None and weights.saved_bytes > spec.max_saved_bytes:
        raise AdapterTooLarge(
            f"{checked.label}: its modules_to_save take {weights.saved_bytes} bytes, but "
            f"max_saved_module_bytes is {spec.max_saved_bytes}; raise it, or train with LoRA on them"
        )
    return checked, weights


def _too_slow(request: LoRARequest, spec: LoadSpec) -> AdapterLoadTimeout:
    return AdapterLoadTimeout(
        f"{_label(request)}: not loaded within lora_load_timeout_s={spec.timeout_s:g}; look for slow "
        "storage or files that are none, or allow more time"
    )


def _attempt(request: LoRARequest, spec: LoadSpec) -> tuple[AdapterWeights | None, AdapterError | None]:
    try:
        with _time_limit(spec.timeout_s):
            return load_adapter(request, spec), None
    except _OutOfTime:
        return None, _too_slow(request, spec)
    except AdapterError as error:
        return None, error
    except (MemoryError, OSError) as error:
        return None, AdapterIOError(f"{_label(request)}: loading failed ({error!r}); try again")
    except Exception as error:  # noqa: BLE001  whatever one adapter does, the next must still load
        return None, AdapterError(
            f"{_label(request)}: unexpected {error!r} while loading; please report it, with the files"
        )


@contextmanager
def _time_limit(timeout_s: float) -> Iterator[None]:
    # A signal ends a read that hangs, and Python's own loops; what it cannot end the engine kills.
    num_rings = 0

    def ring(_number: int, _frame: FrameType | None) -> None:
        nonlocal num_rings
        num_rings += 1
        if num_rings == _NUM_RINGS:
            signal.setitimer(signal.ITIMER_REAL, _REPEAT_S, _REPEAT_S)
        if num_rings >= _NUM_RINGS:
            raise _OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s / _NUM_RINGS, timeout_s / _NUM_RINGS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _label(request: LoRARequest) -> str:
    return adapter_label(request.lora_name, request.lora_path)
