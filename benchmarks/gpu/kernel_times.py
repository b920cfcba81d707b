"""Stage: what each kernel takes at the shapes of an 8B model and of two with experts, beside their floors."""

from __future__ import annotations

from benchmarks.gpu import goals
from benchmarks.gpu.device import Device
from benchmarks.gpu.expert_timings import expert_timings
from benchmarks.gpu.records import Recorder
from benchmarks.gpu.shapes import Shapes, shapes_of
from benchmarks.gpu.timings import Timing, timings
from benchmarks.gpu.workers import share_out

_NUM_WORKERS = 12


def run(device: Device, recorder: Recorder) -> None:
    """Compile what will be timed, then time one after another; a timing that breaks costs only itself."""
    shapes = shapes_of(device)
    cases = [*timings(device, shapes), *expert_timings(device)]
    _compile(device, recorder, [case for case in cases if case.is_compiled])
    copy_bytes_per_s, flops_per_s = device.copy_bytes_per_s(), device.bf16_flops_per_s()
    recorder.fact("copy_bytes_per_s", copy_bytes_per_s)
    recorder.fact("bf16_flops_per_s", flops_per_s)
    taken: dict[str, float] = {}
    for case in cases:
        with recorder.alone(case.name):
            taken[case.name] = device.graph_s(case.make(device.copies_beyond_cache(case.num_bytes)))
        if case.name not in taken:
            continue
        seconds = taken[case.name]
        recorder.figure(
            case.name,
            seconds * 1e6,
            "us",
            floor=max(case.num_bytes / copy_bytes_per_s, case.num_flops / flops_per_s) * 1e6,
            bytes_per_s=case.num_bytes / seconds,
            flops_per_s=case.num_flops / seconds,
        )
    _steps(shapes, recorder, taken, copy_bytes_per_s)


def _compile(device: Device, recorder: Recorder, cases: list[Timing]) -> None:
    """Fill Triton's cache on all cores: one case of each kind of grid is enough."""
    kinds = list({case.kind: case for case in cases}.values())

    def work(item: int) -> None:
        with recorder.alone(f"compiling {kinds[item].name}"):
            kinds[item].make(1)[0]()

    def lost(item: int, exit_status: int) -> None:
        name = kinds[item].name if item >= 0 else "before the first"
        recorder.failure(f"compiling {name}", f"its process ended with exit status {exit_status}")

    num_workers = 2 if device.is_rehearsal else _NUM_WORKERS
    share_out(len(kinds), work, lost, device=device, num_workers=num_workers)


def _steps(shapes: Shapes, recorder: Recorder, taken: dict[str, float], copy_bytes_per_s: float) -> None:
    """Put steps together from their kernels, one after another, nothing overlapped and no gaps."""
    for batch in shapes.batches:
        base = _sum(taken, base_parts(batch), shapes.num_layers)
        head = taken.get(f"head b{batch}")
        if base is None or head is None:
            continue
        base += head
        floor_s = shapes.step_bytes(batch, shapes.contexts[0]) / copy_bytes_per_s
        goal = goals.of_base(batch) * floor_s
        name = f"sum of a base step b{batch}"
        recorder.figure(name, base * 1e3, "ms", floor=floor_s * 1e3, goal=goal * 1e3)
        for count in shapes.adapter_counts:
            for rank in shapes.ranks:
                parts = [f"lora {module} b{batch} {count}xr{rank}" for module in shapes.modules]
                added = _sum(taken, parts, shapes.num_layers)
                if added is None:
                    continue
                recorder.figure(
                    f"sum with {count}xr{rank} / base b{batch}",
                    1 + added / base,
                    "x",
                    floor=1 + count * shapes.adapter_bytes(rank) / copy_bytes_per_s / base,
                    goal=goals.with_adapters(batch, count, rank),
                    added_ms=added * 1e3,
                )


def base_parts(batch: int) -> list[str]:
    """Name the timings that a layer is made of; the norm twice."""
    linears = [f"linear {module} b{batch}" for module in ("qkv", "o", "gate_up", "down")]
    return [*linears, f"norm b{batch}", f"norm b{batch}", f"gate b{batch}", f"decode b{batch} first context"]


def _sum(taken: dict[str, float], names: list[str], times: int) -> float | None:
    found = [taken.get(name) for name in names]
    return None if None in found else times * sum(one for one in found if one is not None)
