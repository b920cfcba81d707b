"""Measures entries side by side: all stay up and take turns, so that a slow minute hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import psutil

from benchmarks.entries import OURS, Entry
from benchmarks.rivals.process import RivalProcess, Round
from benchmarks.rivals.protocol import Job
from benchmarks.workload import Workload

_WARM_UP_TOKENS = 8
_WARM_UP_ROUND = -1
_MAX_FOREIGN_SHARE = 0.1
"""Others taking more than this of the machine disturb a round: half a core taken can halve the speed."""
_QUIET_FOR_S = 1.0

Progress = Callable[[str], None]


@dataclass(slots=True)
class Result:
    """What one entry did in every round."""

    entry: Entry
    version: str
    rounds: list[Round] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        """Output tokens per second of every round."""
        return [one.num_tokens / one.seconds for one in self.rounds]

    @property
    def best(self) -> float:
        """Output tokens per second of the best round: noise on a shared machine only ever slows one down."""
        return max(self.speeds)

    @property
    def foreign_share(self) -> float:
        """Share of all cores' time that others took in the best round."""
        return self.rounds[self.speeds.index(self.best)].foreign_share


@dataclass(frozen=True, slots=True)
class Rules:
    """How often a round is played, and what is done about others who work on the machine meanwhile."""

    num_rounds: int
    num_repeats: int  # most repeats of a round that others disturbed
    patience_s: float  # most seconds to wait for quiet before a round


def play(
    entries: list[Entry], make_job: Callable[[Entry], Job], rules: Rules, progress: Progress
) -> list[Result]:
    """Start every entry, warm it up, and let all of them serve their rounds in turn.

    An interrupt ends the play early: what was measured until then is still worth a report.
    """
    results = []
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        contestants = [_start(stack, entry, make_job(entry), progress) for entry in entries]
        results = [contestant.result for contestant in contestants]
        for number in range(rules.num_rounds):
            for contestant in contestants:
                _play_round(number, contestant, rules, progress)
    return [result for result in results if result.rounds]


class _Contestant(NamedTuple):
    """A running entry and what it did so far."""

    process: RivalProcess
    workload: Workload
    result: Result


def _start(stack: ExitStack, entry: Entry, job: Job, progress: Progress) -> _Contestant:
    progress(f"starting {entry.label}")
    process = stack.enter_context(
        RivalProcess(entry.module, job, python=entry.python, environment=entry.environment, label=entry.label)
    )
    process.run(_WARM_UP_ROUND, _WARM_UP_TOKENS)
    return _Contestant(process, job.workload, Result(entry, process.version))


def _play_round(number: int, contestant: _Contestant, rules: Rules, progress: Progress) -> None:
    process, workload, result = contestant
    for _ in range(1 + rules.num_repeats):
        _wait_for_quiet(rules.patience_s)
        one = _checked(process.run(number, workload.num_new_tokens), workload)
        result.rounds.append(one)
        progress(_line(number, result))
        if one.foreign_share <= _MAX_FOREIGN_SHARE:
            return


def _wait_for_quiet(patience_s: float) -> None:
    """Return when the machine idles, as it does between rounds if nobody else works, or patience ends."""
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        if psutil.cpu_percent(_QUIET_FOR_S) <= 100.0 * _MAX_FOREIGN_SHARE:
            return


def first_token_agreement(results: list[Result]) -> dict[tuple[str, int], float]:
    """Return per (system, adapters) the share of first tokens that equal our own, in the first round.

    Random bfloat16 weights give ties and near-ties, so it is no proof of equality; a system that serves other
    adapters or another model than ours stands out at once.
    """
    ours = {result.entry.num_adapters: result for result in results if result.entry.system == OURS}
    agreement = {}
    for result in results:
        if (mine := ours.get(result.entry.num_adapters)) is None:
            continue
        reference = mine.rounds[0].first_tokens
        equal = [a == b for a, b in zip(result.rounds[0].first_tokens, reference, strict=True)]
        agreement[result.entry.system, result.entry.num_adapters] = sum(equal) / len(equal)
    return agreement


def _checked(one: Round, workload: Workload) -> Round:
    if one.num_tokens != workload.num_output_tokens:
        raise ValueError(
            f"{one.num_tokens} tokens came back, {workload.num_output_tokens} were asked for; "
            "the figures would not be comparable"
        )
    return one


def _line(number: int, result: Result) -> str:
    speed, share = result.speeds[-1], result.rounds[-1].foreign_share
    return f"round {number + 1}  {speed:7.1f} tok/s  others {share:4.0%}  {result.entry.label}"
