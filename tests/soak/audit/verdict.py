"""What an audit has found, and how it is said."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

Kind = Literal["lost", "doubled", "wrong", "webhook_missing", "left"]

WORKER_P99_S = 15.0
ALL_P99_S = 45.0
_SHOWN = 40
_SLOWEST = 8


class Finding(NamedTuple):
    """One thing that must not be."""

    kind: Kind
    what: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one soak; recovery times are seconds from a kill to the next attempt's start."""

    accepted: int
    terminal: int
    flushed: int
    findings: tuple[Finding, ...]
    kills: int
    missed: int  # hook points that nobody came to, and kills that found no process
    hits: Counter[str]  # of each hook point
    other_faults: Counter[str]
    alone_s: tuple[float, ...]  # after kills of workers with no other fault within 30 s
    recovery_s: tuple[float, ...]  # after all kills
    slowest_s: dict[str, float]  # the longest by what was killed
    replaced_at: tuple[float, ...]  # when an adapter's name got another revision, in Unix time

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, doubled, wrong, missing or left."""
        return not self.findings

    @property
    def is_prompt(self) -> bool:
        """Whether jobs ran again as soon as promised."""
        return p99(self.alone_s) <= WORKER_P99_S and p99(self.recovery_s) <= ALL_P99_S

    def count(self, kind: Kind) -> int:
        """How many findings are of a kind."""
        return sum(finding.kind == kind for finding in self.findings)

    def report(self) -> str:
        """Render the findings, what was done, and the line that sums it up."""
        shown = [f"{finding.kind}: {finding.what}" for finding in self.findings[:_SHOWN]]
        if len(self.findings) > _SHOWN:
            shown.append(f"... and {len(self.findings) - _SHOWN} more findings")
        gaps = [after - before for before, after in pairwise(self.replaced_at)]
        done = [
            "hook points: " + (", ".join(f"{name} {n}" for name, n in sorted(self.hits.items())) or "none"),
            "other faults: "
            + (", ".join(f"{name} {n}" for name, n in sorted(self.other_faults.items())) or "none"),
            f"missed: {self.missed}",
            f"adapters replaced: {len(self.replaced_at)}"
            + (f", at most {max(gaps):.0f} s apart" if gaps else ""),
            f"recoveries: {len(self.recovery_s)} seen, {len(self.alone_s)} of a worker alone",
        ]
        slowest = sorted(self.slowest_s.items(), key=lambda item: -item[1])
        done.append(
            "slowest: " + (", ".join(f"{name} {s:.1f} s" for name, s in slowest[:_SLOWEST]) or "none")
        )
        return "\n".join([*shown, *done, self.last_line()])

    def last_line(self) -> str:
        """Render the line that scripts read."""
        return (
            f"soak: accepted={self.accepted} terminal={self.terminal} flushed={self.flushed} "
            f"lost={self.count('lost')} doubled={self.count('doubled')} wrong={self.count('wrong')} "
            f"kills={self.kills} recovery_p99_s={p99(self.alone_s):.1f} "
            f"recovery_all_p99_s={p99(self.recovery_s):.1f} webhooks_missing={self.count('webhook_missing')}"
        )


def p99(values: Sequence[float]) -> float:
    """The smallest value that 99 of 100 do not exceed; 0 of none."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1] if values else 0.0
