"""What an idle stack takes, and an engine beside its weights: `python -m benchmarks.footprint`.

All that `lorayard up` starts on the tiny model, with one worker, after a first job; then an engine's process
on a model of 135 million random parameters. Each figure has its goal beside it; a missed one is status 1.
"""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from benchmarks.checkpoint_files import CACHE, checkpoint_folder
from benchmarks.figures import Figure, verdicts
from benchmarks.machine import describe_run, load_average
from benchmarks.report import table
from benchmarks.workload import Geometry
from examples.demo.workload import MODEL_DIR
from lorayard import Client
from workers.engine import EngineConfig, SamplingParams
from workers.engine.core.engine_info import EngineInfo
from workers.engine.serving.process import AddRequest, EngineProcess

RESULTS: Final = Path(__file__).parent / "results"
MB: Final = 1_000_000
START_S: Final = 900.0
"""A machine that others keep busy starts a stack in minutes."""

_UP = "from lorayard.cli import main; main()"
_CPU_CLOCK: Final = 2
"""Of a process: what `clock_getcpuclockid` makes of an id, exact where /proc counts in ticks of 10 ms."""

_PARTS: Final = {
    "redis-server": "Redis",
    "postgres": "Postgres",
    "watchdog_process.py": "watchdog",
    "scheduler": "scheduler",
    "workers": "worker",
    "workers.webhooks": "relay",
    "lorayard.server.flower": "Flower",
}
_SHARED_MEMORY: Final = ("/dev/zero", "/memfd:", "/SYSV", "/dev/shm")


class Usage(NamedTuple):
    """What one process has used so far."""

    cpu_s: float
    wakeups: int


class PartFigures(NamedTuple):
    """What the processes of one part take together while the stack has nothing to do."""

    part: str
    num_processes: int
    memory_bytes: float
    cpu_share: float
    wakeups_per_s: float
    num_threads: int

    def row(self) -> list[str]:
        """Lay it out for a table."""
        size, cpu = f"{self.memory_bytes / MB:.1f}", f"{100 * self.cpu_share:.3f}"
        return [
            self.part,
            f"{self.num_processes}",
            size,
            cpu,
            f"{self.wakeups_per_s:.1f}",
            f"{self.num_threads}",
        ]


@contextmanager
def running_stack(state_dir: Path) -> Iterator[psutil.Process]:
    """Run `lorayard up` with one worker on the tiny model; yields its process once it serves."""
    words = ["up", "--state-dir", str(state_dir), "--model", str(MODEL_DIR), "--workers", "1"]
    environment = {**psutil.Process().environ(), "LORAYARD_START_TIMEOUT_S": str(START_S)}
    with (state_dir.parent / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _UP, *words], env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + START_S
        while not (state_dir / "client.env").is_file():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the stack did not start: {(state_dir.parent / 'up.log').read_text()}")
            time.sleep(0.5)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def idle_figures(root: psutil.Process, seconds: float) -> list[PartFigures]:
    """Measure everything that `lorayard up` runs, itself included, for so long."""
    family = [root, *root.children(recursive=True)]
    before, began = {process.pid: _usage(process) for process in family}, time.monotonic()
    time.sleep(seconds)
    after, took_s = {process.pid: _usage(process) for process in family}, time.monotonic() - began
    memory = memory_of([process.pid for process in family])
    by_part: dict[str, list[psutil.Process]] = {}
    for process in family:
        by_part.setdefault(_part_of(process, root), []).append(process)
    return [
        PartFigures(
            part,
            len(processes),
            sum(memory[process.pid] for process in processes),
            sum(after[process.pid].cpu_s - before[process.pid].cpu_s for process in processes) / took_s,
            sum(after[process.pid].wakeups - before[process.pid].wakeups for process in processes) / took_s,
            sum(process.num_threads() for process in processes),
        )
        for part, processes in by_part.items()
    ]


def memory_of(pids: Iterable[int]) -> dict[int, float]:
    """Tell each process's proportional share in bytes, as if these were all that the machine runs.

    The kernel's own PSS shares a library's pages with whoever else has it loaded, another stack for one.
    """
    rollups = {pid: Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids}
    files = {pid: _resident_files(Path(f"/proc/{pid}/smaps").read_text()) for pid in rollups}
    users = Counter(key for resident in files.values() for key in resident)
    return {
        pid: 1024.0 * _kilobytes(rollup, "Pss_Anon")
        + 1024.0 * _kilobytes(rollup, "Pss_Shmem")
        + sum(size / users[key] for key, size in files[pid].items())
        for pid, rollup in rollups.items()
    }


def _resident_files(smaps: str) -> dict[str, float]:
    """Find the resident bytes of each piece of a file that is mapped and was not written to."""
    found: dict[str, float] = {}
    for entry in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE)[1:]:
        _, _, offset, device, inode, *name = entry.splitlines()[0].split(maxsplit=5)
        size = 1024.0 * (_kilobytes(entry, "Rss") - _kilobytes(entry, "Anonymous"))
        if inode != "0" and size > 0 and not name[0].startswith(_SHARED_MEMORY):
            key = f"{device} {inode} {offset}"
            found[key] = found.get(key, 0.0) + size
    return found


def _kilobytes(text: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", text, flags=re.MULTILINE)
    return int(found[1]) if found else 0


def _usage(process: psutil.Process) -> Usage:
    """Read what a process and its ended children have used; a thread that blocks and goes on woke up."""
    times, wakeups = process.cpu_times(), 0
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.MULTILINE)
        wakeups += int(found[1]) if found else 0
    own_s = time.clock_gettime((~process.pid << 3) | _CPU_CLOCK)
    return Usage(own_s + times.children_user + times.children_system, wakeups)


def _part_of(process: psutil.Process, root: psutil.Process) -> str:
    if process == root:
        return "lorayard up"
    words = process.cmdline()
    if "workers.engine.serving.child" in " ".join(words):
        return "loader" if process.name() == "lorayard-loader" else "engine"
    names = (process.name(), *(Path(word).name for word in words))
    return next((_PARTS[name] for name in names if name in _PARTS), process.name())


def idle_latencies_ms(redis_url: str, num_jobs: int) -> list[float]:
    """Time jobs of one token from submit to result, each after a pause in which the stack came to rest."""
    taken = []
    with Client(redis_url) as client:
        for _ in range(num_jobs):
            time.sleep(1.5)
            began = time.monotonic()
            client.submit("once", max_tokens=1).result(timeout=START_S)
            taken.append((time.monotonic() - began) * 1000)
    return taken


class EngineFigures(NamedTuple):
    """Bytes of an engine's process above those of a bare `import torch`, beside what it must hold."""

    torch_bytes: int
    resident_bytes: int
    peak_bytes: int
    computed_bytes: int
    first_token_s: float


def engine_figures(base: Path) -> EngineFigures:
    """Start an engine's process on a checkpoint, with LoRA, and have it make one token."""
    code = "import torch; print(open('/proc/self/status').read())"
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    config = EngineConfig(
        model=str(base), dtype="bfloat16", max_num_seqs=8, max_model_len=512, enable_lora=True
    )
    engine, began = EngineProcess(config), time.monotonic()
    try:
        info = engine.start(START_S)
        engine.send(AddRequest("first", [1, 2, 3], None, SamplingParams(max_tokens=1), None))
        while not ((events := engine.receive(START_S)) and events.finished):
            pass
        first_token_s = time.monotonic() - began
        status = Path(f"/proc/{engine.pid}/status").read_text()
    finally:
        engine.stop()
    torch_bytes = 1024 * _kilobytes(bare, "VmRSS")
    return EngineFigures(
        torch_bytes,
        1024 * _kilobytes(status, "VmRSS") - torch_bytes,
        1024 * _kilobytes(status, "VmHWM") - torch_bytes,
        (base / "model.safetensors").stat().st_size + kv_bytes(info, Geometry()),
        first_token_s,
    )


def kv_bytes(info: EngineInfo, geometry: Geometry) -> int:
    """Compute what the keys and values of all cache blocks take in two-byte numbers."""
    per_token = 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim * 2
    return per_token * info.block_size * info.num_kv_blocks


def goals_of(parts: list[PartFigures], engine: EngineFigures) -> list[Figure]:
    """Set what was measured beside what it may be."""
    memory = sum(part.memory_bytes for part in parts) / MB
    processor = 100 * sum(part.cpu_share for part in parts)
    most = 1.1 * engine.computed_bytes / MB
    return [
        Figure("memory of the whole stack", memory, "MB", most=600),
        Figure("its processor time", processor, "% of a core", most=1),
        Figure("engine above `import torch`", engine.resident_bytes / MB, "MB", most=most),
        Figure("... at its peak, while loading", engine.peak_bytes / MB, "MB", most=most),
        Figure("from an engine's start to its first token", engine.first_token_s, "s", most=5),
    ]


def report(
    facts: dict[str, str], parts: list[PartFigures], latencies_ms: list[float], goals: list[Figure]
) -> str:
    """Lay the figures out as markdown."""
    shown = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
    head = ["part", "processes", "memory, MB", "CPU, % of a core", "wakeups/s", "threads"]
    rows = [part.row() for part in sorted(parts, key=lambda part: -part.memory_bytes)]
    sums = PartFigures("sum", *(sum(figures) for figures in zip(*(part[1:] for part in parts), strict=True)))
    wait = f"{statistics.median(latencies_ms):.0f} ms, at most {max(latencies_ms):.0f} ms"
    return f"""# What a stack takes that has nothing to do

{shown}

{table([head, *rows, sums.row()])}

A job of one token, submitted to the idle stack, has its result after {wait} (median).

{verdicts(goals)}
"""


def main() -> int:
    """Run and print, and write the report if asked to; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the idle stack is watched")
    parser.add_argument("--settle", type=float, default=20.0, help="seconds from the first job to that")
    parser.add_argument("--jobs", type=int, default=5, help="jobs of one token for the idle stack's latency")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER")
    parser.add_argument("--write", metavar="NAME", help="keep the report in benchmarks/results")
    options = parser.parse_args()
    base = checkpoint_folder(options.cache, Geometry(), 0)
    facts, before = describe_run([], num_threads=1), load_average()
    with tempfile.TemporaryDirectory(prefix="lorayard-footprint-") as folder:
        Path(folder).chmod(0o711)
        state_dir = Path(folder) / "state"
        with running_stack(state_dir) as root:
            found = re.search(r"LORAYARD_REDIS_URL='?([^'\n]+)", (state_dir / "client.env").read_text())
            assert found is not None, "client.env names Redis"
            idle_latencies_ms(found[1], 1)
            time.sleep(options.settle)
            parts = idle_figures(root, options.seconds)
            latencies_ms = idle_latencies_ms(found[1], options.jobs)
    engine = engine_figures(base)
    facts["load before and after"] = f"{before}, {load_average()}"
    facts["a bare `import torch`"] = f"{engine.torch_bytes / MB:.0f} MB resident"
    facts["weights and KV cache of the engine"] = f"{engine.computed_bytes / MB:.0f} MB as computed"
    goals = goals_of(parts, engine)
    text = report(facts, parts, latencies_ms, goals)
    print(text)
    if options.write:
        (RESULTS / f"{options.write}.md").write_text(text)
    return 0 if all(goal.is_met for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
