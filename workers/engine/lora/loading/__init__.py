"""Turns an adapter's folder into packed weights, in a process beside the engine's."""

from __future__ import annotations

from workers.engine.lora.loading.child import LoaderChild
from workers.engine.lora.loading.loader import Loader, LoadResult, fork_process, start_process
from workers.engine.lora.loading.spec import DEFAULT_TIMEOUT_S, LoadSpec

__all__ = [
    "Loader",
    "LoaderChild",
    "LoadResult",
    "LoadSpec",
    "DEFAULT_TIMEOUT_S",
    "fork_process",
    "start_process",
]
