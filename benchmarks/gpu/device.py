"""The card that is measured, or in a rehearsal the CPU under Triton's interpreter, behind the same calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Launch = Callable[[], object]
"""One call of what is measured; it must be legal while a CUDA graph is captured."""

_POISON_BYTES = (1 << 9, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26)
_L2_BYTES = 120 << 20
"""What launches take turns on: twice the largest L2 there is today."""


@dataclass(frozen=True, slots=True)
class Device:
    """`cuda`, or `cpu` in a rehearsal."""

    name: str

    @property
    def is_rehearsal(self) -> bool:
        """Whether there is no card, and shapes are to be tiny."""
        return self.name == "cpu"

    def synchronize(self) -> None:
        """Wait for all that was launched."""
        if not self.is_rehearsal:
            torch.cuda.synchronize()

    def generator(self, seed: int) -> torch.Generator:
        """Return a generator on the device."""
        return torch.Generator(self.name).manual_seed(seed)

    def poison(self) -> None:
        """Leave NaN in the memory that outputs will be allocated from, so that what is not written shows."""
        if self.is_rehearsal:
            return
        held = [
            torch.full((size // 4,), float("nan"), device=self.name)
            for size in _POISON_BYTES
            for _ in range(4)
        ]
        del held

    def capture(self, launches: Sequence[Launch]) -> Launch:
        """Return what replays the launches: a CUDA graph, or in a rehearsal the launches themselves."""
        if self.is_rehearsal:
            return lambda: [launch() for launch in launches]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            launches[0]()  # compiles and sets up libraries outside the capture
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for launch in launches:
                launch()
        return graph.replay

    def graph_s(self, launches: Sequence[Launch], repeats: int = 7) -> float:
        """Return the seconds of one launch in a graph of them all, the median of the replays."""
        replay = self.capture(launches)
        if self.is_rehearsal:
            return self.time_s(replay) / len(launches)
        replay()
        return statistics.median(self.time_s(replay) for _ in range(repeats)) / len(launches)

    def time_s(self, launch: Launch) -> float:
        """Return the seconds between two events around one call."""
        if self.is_rehearsal:
            began_s = time.perf_counter()
            launch()
            return time.perf_counter() - began_s
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        launch()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def copies_beyond_cache(self, num_bytes: int, most: int = 256) -> int:
        """Return on how many sets of data launches must take turns, so that no cache holds the next one."""
        return 2 if self.is_rehearsal else max(3, min(most, -(-_L2_BYTES // num_bytes)))

    def copy_bytes_per_s(self) -> float:
        """Measure the first ceiling: bytes read plus bytes written by a large copy on the device."""
        num_bytes = 1 << (16 if self.is_rehearsal else 31)
        source, target = (torch.ones(num_bytes, dtype=torch.uint8, device=self.name) for _ in range(2))
        target.copy_(source)
        median_s = statistics.median(self.time_s(lambda: target.copy_(source)) for _ in range(9))
        return 2 * num_bytes / median_s

    def bf16_flops_per_s(self) -> float:
        """Measure the second ceiling: a large square product in bfloat16."""
        size = 64 if self.is_rehearsal else 8192
        left, right = (torch.randn(size, size, device=self.name, dtype=torch.bfloat16) for _ in range(2))
        out = left @ right
        for _ in range(3):
            torch.mm(left, right, out=out)
        median_s = statistics.median(self.time_s(lambda: torch.mm(left, right, out=out)) for _ in range(9))
        return 2 * size**3 / median_s


def random(device: Device, generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Return normal values."""
    return torch.randn(*shape, generator=generator, device=device.name).to(dtype)
