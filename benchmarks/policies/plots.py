"""Draws what a run of the matrix measured: one picture for each group of workloads and column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.policies.measures import Measured
from benchmarks.policies.report import medians

COLUMNS: Final = {
    "tokens_per_s": ("tokens a second", ("standing",)),
    "wait_p99_s": ("p99 of waiting, s", ("deadlines", "flooded")),
    "slot_gb": ("GB loaded into slots", ("standing", "load")),
    "store_gb": ("GB read from the store", ("standing", "load")),
    "score": ("share in time", ("deadlines", "SLO")),
}
"""By column: its label, and the workloads it is drawn for."""


def draw(folder: Path, measured: Sequence[Measured]) -> list[Path]:
    """Write the pictures; raises ImportError without matplotlib."""
    import matplotlib as mpl  # an extra, and slow to import

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    values = medians(measured)
    written: list[Path] = []
    for column, (label, kinds) in COLUMNS.items():
        place = Measured._fields.index(column) - 2
        for kind in kinds:
            found = {key: row[place] for key, row in values.items() if key[0].startswith(kind)}
            if found:
                written.append(_draw_bars(folder / f"{kind}-{column}.png".lower(), label, found))
    return written


def _draw_bars(path: Path, label: str, found: dict[tuple[str, str], float]) -> Path:
    from matplotlib import pyplot as plt

    workloads = list(dict.fromkeys(workload for workload, _ in found))
    policies = list(dict.fromkeys(policy for _, policy in found))
    width = 0.8 / len(policies)
    figure, axes = plt.subplots(figsize=(max(6.0, 1.6 * len(workloads)), 4.5), layout="constrained")
    for number, policy in enumerate(policies):
        places = [place + number * width for place in range(len(workloads))]
        axes.bar(places, [found.get((one, policy), 0.0) for one in workloads], width, label=policy)
    middle = 0.4 - width / 2
    axes.set_xticks([place + middle for place in range(len(workloads))], workloads, rotation=20, ha="right")
    axes.set_ylabel(label)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
