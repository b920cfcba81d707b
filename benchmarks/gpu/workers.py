"""Shares items out among processes, so that kernels are compiled on all cores at once."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from typing import Any

import torch

from benchmarks.gpu.device import Device

_BROKEN_CONTEXT = 3
_POLL_S = 0.02


def share_out(
    num_items: int,
    work: Callable[[int], None],  # records what goes wrong itself; may raise all the same
    lost: Callable[[int, int], None],  # told the item with which a process ended, and its exit status
    *,
    device: Device,
    num_workers: int,
) -> None:
    """Call `work` for every item, each in one of several forked processes; a process that ends is replaced.

    The caller must not have used CUDA yet.
    """
    context = multiprocessing.get_context("fork")
    following = context.Value("i", 0)
    running: dict[ForkProcess, Any] = {}
    num_starts = 0
    while True:
        while len(running) < num_workers and following.value < num_items and num_starts < 4 * num_workers:
            current = context.Value("i", -1)
            process = context.Process(
                target=_worker, args=(num_items, following, current, work, device), daemon=True
            )
            process.start()
            num_starts += 1
            running[process] = current
        for process in [one for one in running if not one.is_alive()]:
            process.join()
            current = running.pop(process)
            if process.exitcode not in (0, _BROKEN_CONTEXT):
                lost(current.value, process.exitcode or 0)
        if not running and (following.value >= num_items or num_starts >= 4 * num_workers):
            break
        time.sleep(_POLL_S)
    for item in range(following.value, num_items):
        lost(item, _BROKEN_CONTEXT)


def _worker(
    num_items: int, following: Any, current: Any, work: Callable[[int], None], device: Device
) -> None:
    torch.set_num_threads(1)
    while True:
        with following.get_lock():
            item = following.value
            following.value = item + 1
        if item >= num_items:
            return
        current.value = item
        work(item)
        if not device.is_rehearsal and _is_broken():
            os._exit(_BROKEN_CONTEXT)


def _is_broken() -> bool:
    """Whether a kernel has ended this process's use of the card, as one that reads astray does."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False
