"""Stage: the card, the versions and the two ceilings that all figures are held to."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu.device import Device, Launch
from benchmarks.gpu.records import Recorder
from kernels import registry

_PACKAGES = ("triton", "numpy", "transformers", "peft", "safetensors", "tokenizers", "pydantic", "structlog")
_QUERIES = (
    "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,pcie.link.gen.current"
)


def run(device: Device, recorder: Recorder) -> None:
    """Write what the machine is and how fast it copies and multiplies."""
    recorder.fact("python", platform.python_version())
    recorder.fact("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")
    for package in _PACKAGES:
        recorder.fact(package, _version(package))
    recorder.fact("host", f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {sys.platform}")
    recorder.fact("C compiler", shutil.which("cc") or shutil.which("gcc") or "none, which Triton needs")
    recorder.fact("kernels on the CPU", registry.default_level("cpu"))
    if not device.is_rehearsal:
        _card(recorder)
    recorder.fact("copy_bytes_per_s", device.copy_bytes_per_s())
    recorder.fact("bf16_flops_per_s", device.bf16_flops_per_s())
    _launches(device, recorder)
    _host_copies(device, recorder)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not there"


def _card(recorder: Recorder) -> None:
    facts = torch.cuda.get_device_properties(0)
    recorder.fact(
        "card",
        f"{facts.name}, sm_{facts.major}{facts.minor}, {facts.multi_processor_count} multiprocessors, "
        f"{facts.total_memory / 2**30:.1f} GiB, L2 {facts.L2_cache_size / 2**20:.0f} MiB",
    )
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={_QUERIES}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    recorder.fact(_QUERIES, done.stdout.strip())


def _launches(device: Device, recorder: Recorder) -> None:
    """Measure what a kernel that does next to nothing takes: by hand, and in a graph."""
    x = torch.zeros(8, device=device.name)
    num_launches = 4 if device.is_rehearsal else 512

    def launch() -> object:
        return x.add_(1)

    launches: list[Launch] = [launch] * num_launches
    recorder.figure("tiny launch in a graph", device.graph_s(launches) * 1e6, "us")
    by_hand_s = device.time_s(lambda: [one() for one in launches]) / num_launches
    recorder.figure("tiny launch by hand", by_hand_s * 1e6, "us")


def _host_copies(device: Device, recorder: Recorder) -> None:
    """Measure copies from pinned and from ordinary memory: what activating an adapter waits for."""
    num_bytes = 1 << (16 if device.is_rehearsal else 28)
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device.name)
    ordinary = torch.ones(num_bytes, dtype=torch.uint8)
    sources = {"ordinary": ordinary}
    if not device.is_rehearsal:
        sources["pinned"] = ordinary.pin_memory()
    for name, source in sources.items():
        copy = partial(target.copy_, source, non_blocking=True)
        seconds = min(device.time_s(copy) for _ in range(3))
        recorder.fact(f"bytes_per_s from {name} memory", num_bytes / seconds)
