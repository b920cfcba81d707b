"""A toy pool for tests of the simulator: a step takes a second, a load ten, a copy two, news no time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from benchmarks.policies.goals import Pool
from benchmarks.policies.hardware import Hardware
from benchmarks.policies.policy import Policy, Setting
from benchmarks.policies.simulator import Simulator
from benchmarks.policies.workload import Adapter, Job
from scheduler.policies import WorkerCapacity, WorkerView

SIZE = 100
TOY = Hardware(
    step_s=1.0,
    row_s=0.0,
    lora_s=0.0,
    adapter_s=0.0,
    rank_s=0.0,
    prompt_token_s=0.0,
    load_s=0.0,
    store_bytes_per_s=10.0,
    host_bytes_per_s=50.0,
    admit_s=0.0,
    turn_s=0.0,
    dispatch_s=0.0,
    report_s=0.0,
)


def adapter(name: str, size: int = SIZE) -> Adapter:
    return Adapter(name, 8, size)


def job(
    number: int, name: str, tokens: int, *, at: float = 0.0, prompt: int = 1, deadline: float | None = None
) -> Job:
    return Job(
        number=number,
        job_id=UUID(int=number),
        adapter=adapter(name),
        prompt_tokens=prompt,
        output_tokens=tokens,
        max_tokens=tokens,
        submitted_at=at,
        deadline_at=deadline,
    )


def pool(num_workers: int = 1, max_num_seqs: int = 2, slots: int = 1, host_adapters: int = 1) -> Pool:
    return Pool(
        num_workers=num_workers,
        max_num_seqs=max_num_seqs,
        kv_tokens=100,
        max_model_len=100,
        slots=slots,
        host_adapters=host_adapters,
        num_adapters=2,
        ranks=(8,),
    )


def simulate(
    of: Pool,
    make: Callable[[Setting], Policy],
    jobs: Sequence[Job],
    names: str = "ab",
    hardware: Hardware = TOY,
) -> Simulator:
    """Run jobs to their ends; adapters of these names are warm, one worker after the other."""
    simulator = Simulator(of, hardware, [adapter(name) for name in names], make)
    simulator.submit(jobs)
    simulator.run()
    return simulator


def setting(names: str = "ab", slots: int = 1, max_num_seqs: int = 2) -> Setting:
    of = pool(slots=slots, max_num_seqs=max_num_seqs)
    return Setting(of, TOY, ("worker-0000",), {name: adapter(name) for name in names})


def view(outstanding: dict[str, int] | None = None, *, room: int = 2, slots: int = 1) -> WorkerView:
    """Show a worker with room for so many more jobs."""
    counts = outstanding or {}
    num_seqs = sum(counts.values()) + room
    return WorkerView(
        incarnation="worker-0000",
        capacity=WorkerCapacity(num_seqs, 10_000, 100, slots, 64),
        target_seqs=num_seqs,
        num_outstanding=sum(counts.values()),
        outstanding_revisions=counts,
    )
