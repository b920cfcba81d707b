"""Ratios are taken within a round, and popularity is what it is called."""

from __future__ import annotations

from collections import Counter

from benchmarks.adapter_cases import (
    UNIFORM,
    ZIPF,
    Activation,
    Case,
    Loading,
    Measured,
    Steps,
    Timing,
    make_cases,
    to_markdown,
)


def test_every_count_and_rank_is_measured_with_both_popularities() -> None:
    assert list(make_cases([1, 4], [8, 64])) == [
        Case(1, 8, UNIFORM),
        Case(4, 8, UNIFORM),
        Case(4, 8, ZIPF),
        Case(1, 64, UNIFORM),
        Case(4, 64, UNIFORM),
        Case(4, 64, ZIPF),
    ]


def test_uniform_spreads_evenly_and_zipf_halves_from_the_first_to_the_second() -> None:
    assert set(Counter(Case(16, 8, UNIFORM).adapters(64, seed=1)).values()) == {4}

    counts = Counter(Case(4, 8, ZIPF).adapters(12_000, seed=1))
    assert set(counts) == {0, 1, 2, 3}
    for place in range(4):
        assert abs(counts[place] * (place + 1) / counts[0] - 1) < 0.1
    assert Case(4, 8, ZIPF).adapters(50, seed=2) == Case(4, 8, ZIPF).adapters(50, seed=2)


def test_the_report_gives_the_median_of_each_rounds_ratios() -> None:
    rounds = [
        (Timing(100.0, 10.0, 2.0), Timing(90.0, 12.0, 2.2)),
        (Timing(50.0, 20.0, 4.0), Timing(40.0, 22.0, 4.4)),  # somebody else used the machine
        (Timing(100.0, 10.0, 2.0), Timing(88.0, 11.0, 2.1)),
    ]

    measured = [Measured(Case(4, 16, ZIPF), rounds, 3)]
    loadings = {16: Loading(Steps(2.0, 3.0), Steps(2.1, 4.0), 7)}
    activations = {16: Activation(20.0, 1.0, 0.01)}

    report = to_markdown({"date": "today", "empty": ""}, measured, activations, loadings)

    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines()]
    assert ["16", "4", "Zipf", "3", "0.88", "1.10", "1.10"] in rows
    assert ["16", "20.00", "1.00", "0.01"] in rows
    assert ["16", "2.00", "3.00", "2.10", "4.00", "7"] in rows
    assert "The base alone: 100 output tokens/s, first token after 10.0 ms, then one every 2.00 ms." in report
    assert "- date: today" in report
    assert "empty" not in report
