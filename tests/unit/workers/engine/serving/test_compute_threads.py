from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.engine.core.processors import num_processors
from workers.engine.serving.compute_threads import ComputeThreads, idle_time


class Machine:
    """Processors that this process shares with a neighbour; a thread that gets one keeps it busy."""

    def __init__(self, most: int = 2, num: int = 2) -> None:
        self.now_s = self.own_s = 0.0
        self.num = num
        self.idle_s: float | None = 0.0
        self.used: list[int] = []
        self.threads = ComputeThreads(
            most,
            clock=lambda: self.now_s,
            busy_s=lambda: self.own_s,
            idle_s=lambda: self.idle_s,
            apply=self.used.append,
        )

    def run(
        self, seconds: float, *, neighbour: float, gets: float | None = None, nicer: bool = False
    ) -> list[int]:
        """Step for a while beside a neighbour that takes so many processors; returns each change.

        One that is `nicer` takes what this process leaves, so that nothing is ever idle.
        """
        self.used.clear()
        for _ in range(round(seconds / 0.05)):
            self.threads.adjust()
            self.now_s += 0.05
            own = min(self.threads.num, self.num - neighbour) if gets is None else gets
            self.own_s += 0.05 * own
            if self.idle_s is not None and not nicer:
                self.idle_s += 0.05 * max(0.0, self.num - neighbour - own)
        return self.used


def test_alone_all_threads_stay() -> None:
    machine = Machine()

    assert machine.run(60, neighbour=0) == []
    assert machine.threads.num == 2


def test_a_busy_neighbour_costs_the_thread_whose_processor_it_takes_and_no_more() -> None:
    machine = Machine()

    assert machine.run(5, neighbour=1, gets=1.4) == [1]
    assert Machine(16, 16).run(5, neighbour=3) == [13]
    assert Machine(4, 4).run(5, neighbour=9, gets=0.4) == [1]


def test_they_come_back_as_soon_as_the_neighbour_is_gone() -> None:
    machine = Machine()
    machine.run(5, neighbour=1)

    assert machine.run(1.5, neighbour=0) == [2]


def test_a_neighbour_that_takes_little_costs_none() -> None:
    assert Machine().run(60, neighbour=0.2) == []


def test_all_are_tried_now_and_then_beside_neighbours_that_would_give_way() -> None:
    machine = Machine()
    machine.run(5, neighbour=1)

    assert machine.run(20, neighbour=0.1, nicer=True) == [2]


def test_a_try_that_fails_is_over_at_the_next_look() -> None:
    machine = Machine()
    machine.run(5, neighbour=1)

    changes = machine.run(30, neighbour=1)

    assert changes == [2, 1] * 3


def test_an_engine_that_waits_for_requests_is_no_neighbour_of_its_own() -> None:
    assert Machine().run(10, neighbour=0, gets=0.05) == []


def test_where_the_system_does_not_tell_all_threads_stay() -> None:
    machine = Machine()
    machine.idle_s = None

    assert machine.run(10, neighbour=1) == []


def test_one_thread_is_never_looked_after() -> None:
    machine = Machine(1)
    machine.threads._idle_s = lambda: pytest.fail("it looked")

    assert machine.run(10, neighbour=1) == []


def test_idle_time_is_that_of_the_processors_this_process_may_use() -> None:
    told = idle_time()

    assert told is not None
    assert 0 < told < float(Path("/proc/uptime").read_text().split()[0]) * len(os.sched_getaffinity(0)) + 1


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1),
        (
            "4:cpu,cpuacct:/a\n0::/\n",
            {"cpu/a/cpu.cfs_quota_us": "20000", "cpu/a/cpu.cfs_period_us": "20000"},
            1,
        ),
        ("4:cpu:/a\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "20000"}, None),
        ("", {}, None),
    ],
)
def test_a_quota_counts_in_whatever_group_it_is_set(
    cgroup: str, files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    assert num_processors(tmp_path) == (expected or len(os.sched_getaffinity(0)))
