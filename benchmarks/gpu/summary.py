"""The report: what broke, what was wrong, then every figure beside its goal and floor, worst first."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from benchmarks.report import Row, table

Record = dict[str, Any]
_TRACE_LINES = 12


def summarize(records: list[Record], *, max_failures: int, max_figures: int) -> str:
    """Return the report; `max_failures` and `max_figures` keep it short."""
    parts = [
        _facts([one for one in records if one["kind"] == "fact"]),
        _stages([one for one in records if one["kind"] == "stage"]),
        _failures([one for one in records if one["kind"] == "failure"], max_failures),
        _checks([one for one in records if one["kind"] == "check"], max_failures),
        _tables([one for one in records if one["kind"] == "row"]),
        _figures([one for one in records if one["kind"] == "figure"], max_figures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(facts: list[Record]) -> str:
    latest = {fact["name"]: fact["value"] for fact in facts}
    return "\n".join(f"- {name}: {_fact(value)}" for name, value in latest.items())


def _fact(value: Any) -> str:
    return f"{value:.3e}" if isinstance(value, float) else str(value)


def _stages(stages: list[Record]) -> str:
    return "; ".join(f"{one['stage']} {one['outcome']} in {one['seconds']:.0f} s" for one in stages)


def _failures(failures: list[Record], most: int) -> str:
    parts = []
    for failure in failures[:most]:
        end = "\n".join(failure["trace"].strip().splitlines()[-_TRACE_LINES:])
        parts.append(f"FAILED {failure['stage']}: {failure['name']}\n{end}")
    if len(failures) > most:
        names = "; ".join(failure["name"] for failure in failures[most : 5 * most])
        parts.append(f"... {len(failures) - most} more failures: {names}")
    return "\n\n".join(parts)


def _checks(checks: list[Record], most: int) -> str:
    if not checks:
        return ""
    by_kernel: dict[str, list[Record]] = defaultdict(list)
    for check in checks:
        by_kernel[check["kernel"]].append(check)
    rows: list[Row] = [["kernel", "right", "worst error / limit", "of"]]
    for kernel, mine in by_kernel.items():
        worst = max(mine, key=_share)
        right = sum(one["passed"] for one in mine)
        rows.append([kernel, f"{right} of {len(mine)}", f"{_share(worst):.3g}", worst["case"]])
    wrong = sorted((one for one in checks if not one["passed"]), key=_share, reverse=True)
    lines = [
        f"WRONG {one['kernel']}, {one['case']}: error {one['error']:.3g}, limit {one['limit']:.3g}"
        for one in wrong[: 3 * most]
    ]
    if len(wrong) > len(lines):
        lines.append(f"... {len(wrong) - len(lines)} more")
    return "\n".join([*lines, "", table(rows)]).strip()


def _tables(found: list[Record]) -> str:
    """Return the stages' own tables, rows in the order in which they were found."""
    rows: dict[str, list[Row]] = {}
    for one in found:
        columns = [one["table"], *one["cells"]]
        body = rows.setdefault("\n".join(columns), [columns])
        body.append(["", *map(_cell, one["cells"].values())])
    return "\n\n".join(table(one) for one in rows.values())


def _cell(value: str | float | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def _share(check: Record) -> float:
    """Return the error as a share of what it may be; NaN is worst."""
    if check["error"] != check["error"]:
        return float("inf")
    if not check["limit"]:
        return float("inf") if check["error"] else 0.0
    return float(check["error"] / check["limit"])


def _figures(figures: list[Record], most: int) -> str:
    if not figures:
        return ""
    rows: list[Row] = [["figure", "value", "unit", "floor", "x floor", "goal", "met"]]
    ordered = sorted(figures, key=_badness, reverse=True)
    for one in ordered[:most]:
        floor, goal = one["floor"], one["goal"]
        rows.append(
            [
                one["name"],
                f"{one['value']:.4g}",
                one["unit"],
                "" if floor is None else f"{floor:.4g}",
                "" if not floor else f"{one['value'] / floor:.2f}",
                "" if goal is None else f"{goal:.4g}",
                "" if goal is None else ("yes" if one["value"] <= goal else "NO"),
            ]
        )
    hidden = f"\n... {len(figures) - most} more figures" if len(figures) > most else ""
    return table(rows) + hidden


def _badness(figure: Record) -> tuple[float, float]:
    """Order by the distance to the goal, then by the distance to the floor."""
    value, goal, floor = figure["value"], figure["goal"], figure["floor"]
    return (value / goal if goal else 0.0, value / floor if floor else 0.0)
