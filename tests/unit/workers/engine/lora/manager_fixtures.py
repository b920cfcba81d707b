"""Managers over the tiny base, adapters by number, and how a test waits for a slot."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.unit.workers.engine.lora.adapter_writer import BASE, write_adapter
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.digest import adapter_digest
from workers.engine.lora.loading import LoadSpec
from workers.engine.lora.residency.manager import LoRAManager

_PATIENCE_S = 120.0
"""Not a limit on the product: a starved loader on a crowded machine gets its turn late."""

MakeManager = Callable[..., LoRAManager]
MakeRequest = Callable[..., LoRARequest]


def new_manager(max_loras: int = 2, max_cpu_loras: int | None = 4, **options: Any) -> LoRAManager:
    return LoRAManager(
        BASE.shapes,
        **{
            "layout": BASE.layout,
            "num_layers": BASE.num_layers,
            "max_loras": max_loras,
            "max_cpu_loras": max_cpu_loras,
            "max_lora_rank": 64,
            "dtype": torch.float32,
            "device": "cpu",
            "base_name": BASE.name,
            **options,
        },
    )


def spec_of(**limits: Any) -> LoadSpec:
    """What loads for the tiny base have in common."""
    return LoadSpec(BASE, **{"max_rank": 64, "dtype": "float32", **limits})


def request_of(folder: Path, number: int, *, pinned: bool = True, **options: Any) -> LoRARequest:
    """Write adapter `number`, different from every other, and ask for it; `pinned` names its revision."""
    path = write_adapter(folder / f"adapter-{number}", **{"seed": number, "rank": 4, **options})
    return LoRARequest(f"adapter-{number}", number, str(path), adapter_digest(path) if pinned else None)


def stuck_request(folder: Path) -> LoRARequest:
    """Ask for an adapter whose weights this process has leased and never lets go of: opening them hangs.

    The kernel ends the lease after 45 s (/proc/sys/fs/lease-break-time).
    """
    path = write_adapter(folder / "stuck")
    weights = os.open(path / "adapter_model.safetensors", os.O_RDWR)  # open as long as this process lives
    fcntl.fcntl(weights, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    fcntl.fcntl(weights, fcntl.F_SETOWN, 0)  # or opening them would end this process with SIGIO
    return LoRARequest("stuck", 99, str(path))


def acquired(manager: LoRAManager, request: LoRARequest) -> int:
    """Ask for a slot step after step, as the engine does; the pause lets the loader run."""
    deadline = time.monotonic() + _PATIENCE_S
    pause = threading.Event()
    while (slot := manager.acquire(request)) is None:
        assert time.monotonic() < deadline, f"no slot for {request.lora_name} within {_PATIENCE_S:g} s"
        pause.wait(0.0005)
    return slot
