"""What a figure is worth nothing without: the machine, the versions, the commit and the date."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

_ISA_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe_run(versions: list[str], *, num_threads: int) -> dict[str, str]:
    """Return the facts of this run, in the order they are shown."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": _machine(),
        "threads": str(num_threads),
        "versions": "; ".join(
            ["Python " + platform.python_version(), f"torch {metadata.version('torch')}", *versions]
        ),
        "load before and after": "",
    }


def load_average() -> str:
    """Return the one-minute load average."""
    return f"{os.getloadavg()[0]:.1f}"


def _machine() -> str:
    memory_gib = psutil.virtual_memory().total / 2**30
    info = _cpu_info()
    flags = [flag for flag in _ISA_FLAGS if flag in info.get("flags", "").split()]
    name = info.get("model name", platform.processor() or platform.machine())
    return f"{name}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {' '.join(flags)}"


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _commit() -> str:
    folder = Path(__file__).parent
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    return f"{commit} with uncommitted changes" if _git(folder, "status", "--porcelain") else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
