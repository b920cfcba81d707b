"""Growth is told from noise by the bound of a line's slope."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.soak.journal import Journal
from tests.soak.steady import process_name, slope, table


def test_a_slope_is_per_hour_and_within_its_bounds() -> None:
    found = slope([(float(second), 100 + second / 360) for second in range(0, 600, 10)])

    assert found.per_hour == pytest.approx(10.0)
    assert found.lower == pytest.approx(10.0)
    assert found.upper == pytest.approx(10.0)


def test_noise_widens_the_bounds() -> None:
    rng = random.Random(1)
    found = slope([(float(second), 100 + rng.gauss(0, 1)) for second in range(0, 2700, 10)])

    assert found.lower < 0 < found.upper
    assert found.lower < found.per_hour < found.upper


def test_a_process_that_grows_is_named_and_the_warm_up_does_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "samples.jsonl")
    for number in range(120):
        at = number * 10.0
        warm = min(at, 600.0)
        for name, pss_mb in (("still", 100 + warm), ("growing", 100 + at / 360)):
            sample = {"at": at, "event": "sample", "pid": 1, "name": name, "pss_mb": pss_mb}
            journal.append(sample | {"fds": 9, "threads": 3, "maps": 40})
    journal.close()

    lines, is_steady = table(tmp_path, warm_up_s=600.0)

    assert not is_steady
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["growing", "still"]
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["memory", "steady"]


def test_processes_are_named_by_what_they_run() -> None:
    own = [b"LORAYARD_WORKER_NAME=worker-1"]

    assert process_name(b"python\0-m\0workers\0", own) == "worker-1 worker"
    assert (
        process_name(b"python\0-c\0from workers.engine.serving.child import main\0", own) == "worker-1 engine"
    )
    assert (
        process_name(b"lorayard-loader\npython\0-c\0from workers.engine.serving.child import main\0", own)
        == "worker-1 loader"
    )
    assert process_name(b"python\0-m\0workers.webhooks\0", []) == "relay"
    assert process_name(b"python\0-m\0scheduler\0", []) == "scheduler"
