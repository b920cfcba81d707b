"""What `benchmarks.adapters` varies, and its report: every figure as a ratio to the base beside it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from benchmarks.report import Row, table

UNIFORM, ZIPF = "uniform", "Zipf"


@dataclass(frozen=True, slots=True)
class Case:
    """So many adapters of one rank, and how popular each is."""

    num_adapters: int
    rank: int
    popularity: str

    def adapters(self, num_requests: int, seed: int) -> list[int]:
        """Return which adapter each request uses; Zipf's k-th adapter is 1/k as popular as the first."""
        if self.popularity == UNIFORM:
            return [request % self.num_adapters for request in range(num_requests)]
        weights = [1 / place for place in range(1, self.num_adapters + 1)]
        return random.Random(seed).choices(range(self.num_adapters), weights, k=num_requests)


class Timing(NamedTuple):
    """How one round was served."""

    tokens_per_s: float  # output
    ttft_ms: float  # time to first token, median over requests
    itl_ms: float  # time between tokens, median over requests


class Activation(NamedTuple):
    """How long an adapter takes until it has its slot, in milliseconds, by where it is found."""

    disk_ms: float
    host_ms: float
    device_ms: float


class Steps(NamedTuple):
    """How long steps of decoding took, in milliseconds."""

    median_ms: float
    longest_ms: float


class Loading(NamedTuple):
    """Steps of base requests with nothing else going on, and while one cold adapter after another loads."""

    quiet: Steps
    loading: Steps
    num_loads: int


class Measured(NamedTuple):
    """A case with its rounds, each beside the base's of the same moment."""

    case: Case
    rounds: list[tuple[Timing, Timing]]  # base, case
    num_distinct: int  # adapters that requests really used

    @property
    def ratios(self) -> Timing:
        """The case's figures divided by the base's, median over rounds."""
        per_round = [[ours / base for base, ours in zip(*pair, strict=True)] for pair in self.rounds]
        return Timing(*map(median, zip(*per_round, strict=True)))


def make_cases(counts: Iterable[int], ranks: Iterable[int]) -> Iterator[Case]:
    """Yield every case; one adapter alone has no popularity to vary."""
    for rank in ranks:
        for count in counts:
            for popularity in (UNIFORM, ZIPF)[: min(count, 2)]:
                yield Case(count, rank, popularity)


def to_markdown(
    facts: dict[str, str],
    measured: list[Measured],
    activations: dict[int, Activation],
    loadings: dict[int, Loading],
) -> str:
    """Return the whole report."""
    base = _median_base(measured)
    alone = (
        f"The base alone: {base.tokens_per_s:.0f} output tokens/s, first token after {base.ttft_ms:.1f} ms, "
        f"then one every {base.itl_ms:.2f} ms. All else as a ratio to it, median over rounds."
    )
    parts = [
        "# Adapters against the base, one run",
        "\n".join(f"- {name}: {value}" for name, value in facts.items() if value),
        alone,
        table(list(_ratio_rows(measured))),
        "Milliseconds until an adapter has its slot, median, by where it is found.",
        table(list(_activation_rows(activations))),
        "Milliseconds of a decoding step, median and longest, alone and while cold adapters are loaded.",
        table(list(_loading_rows(loadings))),
    ]
    return "\n\n".join(parts) + "\n"


def _median_base(measured: list[Measured]) -> Timing:
    timings = [base for one in measured for base, _ in one.rounds]
    return Timing(*map(median, zip(*timings, strict=True)))


def _ratio_rows(measured: list[Measured]) -> Iterator[Row]:
    yield ["rank", "adapters", "popularity", "used", "output tok/s", "first token", "between tokens"]
    for one in measured:
        ratios = [f"{ratio:.2f}" for ratio in one.ratios]
        case = one.case
        yield [str(case.rank), str(case.num_adapters), case.popularity, str(one.num_distinct), *ratios]


def _activation_rows(activations: dict[int, Activation]) -> Iterator[Row]:
    yield ["rank", "disk", "host memory", "in a slot already"]
    for rank, activation in activations.items():
        yield [str(rank), *(f"{milliseconds:.2f}" for milliseconds in activation)]


def _loading_rows(loadings: dict[int, Loading]) -> Iterator[Row]:
    yield ["rank", "alone", "longest", "while loading", "longest", "adapters loaded"]
    for rank, (quiet, loading, num_loads) in loadings.items():
        figures = [f"{milliseconds:.2f}" for milliseconds in (*quiet, *loading)]
        yield [str(rank), *figures, str(num_loads)]
