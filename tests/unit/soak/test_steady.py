"""Growth is told from noise by the bound of a line's slope."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.soak.journal import Journal
from tests.soak.steady import is_growing, process_name, slope, table

Points = list[tuple[float, float]]
SECONDS = range(0, 2700, 10)
"""When a steady run is sampled."""


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


def busy(seed: int, leaked_per_hour: float = 0.0) -> Points:
    """A count that work moves up and down by some, and perhaps a leak under it."""
    rng = random.Random(seed)
    return [(float(at), 30 + rng.randrange(9) + at * leaked_per_hour // 3600) for at in SECONDS]


@pytest.mark.parametrize("at_s", [600, 900, 1500, 2000, 2300])
def test_one_more_that_stays_is_growth(at_s: int) -> None:
    assert is_growing([(float(at), 30.0 + (at >= at_s)) for at in SECONDS])


def test_a_count_that_stays_or_falls_or_comes_and_goes_does_not_grow() -> None:
    assert not is_growing([(float(at), 30.0) for at in SECONDS])
    assert not is_growing([(float(at), 30.0 - at // 900) for at in SECONDS])
    assert not is_growing([(float(at), 30.0 + (at % 600 < 60)) for at in SECONDS])
    assert sum(is_growing(busy(seed)) for seed in range(100)) <= 5


def test_a_leak_is_found_under_whatever_noise() -> None:
    assert sum(is_growing(busy(seed, leaked_per_hour=6)) for seed in range(100)) == 100


def test_too_few_samples_show_no_count_to_stay() -> None:
    assert slope([(0.0, 1.0), (10.0, 1.0)]).upper == float("inf")
    assert not is_growing([(0.0, 1.0), (10.0, 1.0)])
    assert is_growing([(0.0, 1.0), (10.0, 2.0)])


def test_a_process_that_grows_is_named_and_the_warm_up_does_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "samples.jsonl")
    for number in range(120):
        at = number * 10.0
        warm = min(at, 600.0)
        leaked = int(at >= 1000)
        for name, mb, fds in (
            ("still", 100 + warm, 9),
            ("growing", 100 + at / 360, 9),
            ("leaking", 100, 9 + leaked),
        ):
            sample = {"at": at, "event": "sample", "pid": 1, "name": name, "mb": mb}
            journal.append(sample | {"fds": fds, "threads": 3, "maps": 40})
    journal.close()

    lines, is_steady = table(tmp_path, warm_up_s=600.0)

    assert not is_steady
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["growing", "leaking", "still"]
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["memory", "fds", "steady"]


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
