"""Samples what a soak's processes hold, and says by a line through the samples whether it grows."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.soak.journal import Journal, read

SAMPLE_EVERY_S = 10.0
MAX_MB_PER_HOUR = 4.0
MAX_COUNT_PER_HOUR = 1.0
"""A line whose upper bound stays below it adds not even one file descriptor, thread or map in an hour."""
OWN_MEMORY = ("Pss_Anon", "Pss_Shmem", "SwapPss")
"""All but pages of files: a process' part of those grows when another that has them as well ends."""
COUNTS = ("fds", "threads", "maps")
LAST_S = 300.0
MIN_SAMPLES = 3
_NAMES = {
    "lorayard-loader": "loader",
    "workers.engine.serving.child": "engine",
    "workers.engine.structured_output": "grammar check",
    "tests.soak.producer": "producer",
    "workers.webhooks": "relay",
    "scheduler": "scheduler",
    "flower": "flower",
    "workers": "worker",
}
"""What the name or the command line of a process has in it, the most telling first."""


class Slope(NamedTuple):
    """The line of least squares through samples, per hour, with the bounds of its 95 % interval."""

    per_hour: float
    lower: float
    upper: float
    noise: float
    """Standard deviation of the samples about the line, in their own unit."""


class Sampler:
    """A thread that writes a line of `samples.jsonl` for each process every ten seconds."""

    def __init__(self, folder: Path, mark: str) -> None:
        self._variable = f"SOAK_RUN={mark}".encode()
        self._journal = Journal(folder / "samples.jsonl")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._journal.close()

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_EVERY_S):
            if found := [sample for folder in Path("/proc").iterdir() if (sample := self._sample(folder))]:
                self._journal.append(*found)

    def _sample(self, folder: Path) -> dict[str, Any] | None:
        if not folder.name.isdigit():
            return None
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            if self._variable not in environment:
                return None
            rollup = (folder / "smaps_rollup").read_text()
            return {
                "event": "sample",
                "pid": int(folder.name),
                "name": process_name(
                    (folder / "comm").read_bytes() + (folder / "cmdline").read_bytes(), environment
                ),
                "mb": sum(int(rollup.split(f"\n{one}:")[1].split()[0]) for one in OWN_MEMORY) / 1024,
                "fds": sum(1 for _ in (folder / "fd").iterdir()),
                "threads": sum(1 for _ in (folder / "task").iterdir()),
                "maps": (folder / "maps").read_text().count("\n"),
            }
        except (OSError, IndexError):
            return None  # it has ended meanwhile


def process_name(command: bytes, environment: Iterable[bytes]) -> str:
    """Name a process of the stack by what it runs, and by its worker if it belongs to one."""
    own = next(
        (one.split(b"=")[1].decode() for one in environment if one.startswith(b"LORAYARD_WORKER_NAME=")), ""
    )
    kind = next((name for word, name in _NAMES.items() if word.encode() in command), "other")
    return f"{own} {kind}".strip()


def slope(points: Sequence[tuple[float, float]]) -> Slope:
    """Fit a line to (seconds, value); fewer than three points bound nothing."""
    count = len(points)
    if count < MIN_SAMPLES:
        return Slope(0.0, -math.inf, math.inf, 0.0)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    b = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    residuals = sum((y - mean_y - b * (x - mean_x)) ** 2 for x, y in points)
    # 1.96 for the quantile of Student's t, which it is nearly from thirty samples (five minutes) on.
    noise = math.sqrt(residuals / (count - 2))
    margin = 1.96 * noise / math.sqrt(spread)
    return Slope(b * 3600, (b - margin) * 3600, (b + margin) * 3600, noise)


def is_growing(points: Sequence[tuple[float, float]]) -> bool:
    """Whether a count of (seconds, value) has grown by even one.

    It has not if its line surely rises by less than one an hour. Otherwise it has if the line surely rises at
    all, or if the highest value of the last five minutes is above the highest of the first third by more than
    the samples scatter: noise alone widens the bounds, and one leaked descriptor hides in neither.
    """
    line = slope(points)
    if line.upper < MAX_COUNT_PER_HOUR:
        return False
    begins, ends = points[0][0], points[-1][0]
    early = [value for at, value in points if at <= begins + (ends - begins) / 3]
    late = [value for at, value in points if at >= max(ends - LAST_S, begins + (ends - begins) * 2 / 3)]
    return line.lower > 0 or max(late) > max(early) + line.noise


def table(folder: Path, warm_up_s: float) -> tuple[list[str], bool]:
    """Render what was sampled after the warm-up, a line a process; and whether nothing grows."""
    samples = list(read([folder / "samples.jsonl"]))
    if not samples:
        return ["no samples: the run was shorter than ten seconds"], False
    from_s = samples[0]["at"] + warm_up_s
    by_process: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for sample in samples:
        if sample["at"] >= from_s:
            by_process[sample["name"], sample["pid"]].append(sample)
    headings = ["process", "samples", "MB, first and last", "MB/h (upper 95 %)"]
    headings += [f"{one}/h (upper 95 %)" for one in COUNTS]
    lines = [f"| {' | '.join(headings)} | |", "|---|---|---|---|---|---|---|---|"]
    is_steady = bool(by_process)
    for (name, _), taken in sorted(by_process.items()):
        memory = slope([(sample["at"], sample["mb"]) for sample in taken])
        counts = {one: [(sample["at"], sample[one]) for sample in taken] for one in COUNTS}
        grows = [one for one, points in counts.items() if is_growing(points)]
        grows += ["memory"] if memory.upper > MAX_MB_PER_HOUR else []
        is_steady = is_steady and not grows
        lines_of_counts = [slope(points) for points in counts.values()]
        rest = " | ".join(f"{line.per_hour:+.1f} ({line.upper:+.1f})" for line in lines_of_counts)
        lines.append(
            f"| {name} | {len(taken)} | {taken[0]['mb']:.1f}, {taken[-1]['mb']:.1f} "
            f"| {memory.per_hour:+.1f} ({memory.upper:+.1f}) | {rest} | {', '.join(grows) or 'steady'} |"
        )
    return lines, is_steady
