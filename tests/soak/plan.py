"""What a soak does, from its seed alone: every job, and every fault by the number of submitted jobs."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tests.soak.hooks import POINTS

Kind = Literal["plain", "cancel", "deadline", "stream", "same_key", "other_payload", "structured", "sampled"]
SHARES: dict[Kind, float] = {
    "cancel": 0.03,
    "deadline": 0.04,
    "stream": 0.06,
    "same_key": 0.03,
    "other_payload": 0.03,
    "structured": 0.05,
    "sampled": 0.04,
}
"""Share of each kind, rounded up; the rest is plain."""
WEBHOOK_SHARE = 0.3
RECEIVERS = {"healthy": 0.75, "failing": 0.1, "hanging": 0.03, "lying": 0.12}
LEDGER_SHARE = 0.1
MOVING_SHARE = 0.1
"""Of plain jobs, for the adapter that is replaced all the time."""
TENANTS = ("ash", "birch", "cedar", "dogwood")
MOVING = "moving"
JOBS_PER_FRESH, FRESH_HOSTS = 40, 100

ADAPTERS = (
    "upper", "reverse", "rot13", "sort", "vowels", "consonants", "twice", "swapends", "nextletter", "rotate",
)  # fmt: skip
WORDS_PER_ADAPTER = 6
MOVING_WORDS = 3

FaultKind = Literal[
    "hook", "kill", "stop", "restart_redis", "kill_redis", "restart_postgres", "kill_postgres",
    "slow_postgres", "read_only_postgres", "full_redis", "flush_redis", "rolling_restart",
]  # fmt: skip
QUIET_GAP = 3
"""Times the usual distance between two faults."""
KILLED = ("worker", "engine", "scheduler", "loader", "producer", "relay")
STOPPED = ("worker", "scheduler", "engine", "relay", "loader", "producer")
STOPS_S = (3.0, 14.0)
"""Below the lease of a worker (10 s) and the term of a leader (5 s), and above both."""


@dataclass(frozen=True, slots=True)
class Request:
    """One distinct generation; `word` and `form` are all that its answer depends on but for the adapter."""

    name: str
    adapter: str | None
    number: int  # the word's place among the adapter's held-out words
    form: Literal["prompt", "messages", "choice", "regex", "sampled"] = "prompt"


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job of the plan; `number` names it in every file, `other` is the payload of a second submission."""

    number: int
    kind: Kind
    request: str
    adapter: str | None
    tenant: str
    confirm: Literal["stream", "ledger"]
    has_key: bool
    priority: Literal["high", "normal", "low"]
    receiver: str | None = None
    deadline_s: float | None = None
    other: str | None = None

    @property
    def may_end(self) -> tuple[str, ...]:
        """The states in which it may rightly end."""
        if self.kind == "cancel":
            return ("succeeded", "cancelled")
        if self.kind == "deadline":
            return ("succeeded", "expired")
        return ("succeeded",)

    def to_json(self) -> dict[str, Any]:
        """Render it for its producer."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, due once so many jobs were submitted; `target` is a hook point or a kind of process."""

    at_job: int
    kind: FaultKind
    target: str = ""
    for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole of a soak."""

    jobs: tuple[PlannedJob, ...]
    faults: tuple[Fault, ...]

    @property
    def jobs_per_fault(self) -> int:
        """How many jobs may be submitted beyond the number at which the next fault is due."""
        return max(1, len(self.jobs) // (len(self.faults) + 1))


def requests() -> tuple[Request, ...]:
    """Name every distinct generation, so that its answer can be computed beforehand."""
    found = [
        Request(f"{name or 'base'}-{number}", name, number, "messages" if number == 0 else "prompt")
        for name in (*ADAPTERS, None)
        for number in range(WORDS_PER_ADAPTER)
    ]
    found += [Request(f"{MOVING}-{number}", MOVING, number) for number in range(MOVING_WORDS)]
    found += [Request(f"choice-{name}", name, 1, "choice") for name in ("upper", "sort", None)]
    found += [Request(f"regex-{name}", name, 2, "regex") for name in ("rot13", "vowels", None)]
    found += [Request(f"sampled-{name}", name, 3, "sampled") for name in ("sort", "rotate", None)]
    return tuple(found)


def make_plan(jobs: int, kills: int, seed: int, *, fresh: bool = False) -> Plan:
    """Make the plan of a seed; the same arguments give the same plan.

    `fresh` has tenants and webhook hosts change all the time, so that whatever is kept for each can be seen.
    """
    planned = _jobs(jobs, random.Random(f"jobs/{seed}"))
    return Plan(
        tuple(_freshened(job) for job in planned) if fresh else tuple(planned),
        tuple(_faults(jobs, kills, random.Random(f"faults/{seed}"))),
    )


def _freshened(job: PlannedJob) -> PlannedJob:
    receiver = job.receiver
    if receiver == "healthy":
        receiver = f"healthy-{job.number // JOBS_PER_FRESH % FRESH_HOSTS}"
    return replace(job, tenant=f"{job.tenant}{job.number // JOBS_PER_FRESH}", receiver=receiver)


def _jobs(count: int, rng: random.Random) -> Iterator[PlannedJob]:
    kinds: list[Kind] = [kind for kind, share in SHARES.items() for _ in range(math.ceil(count * share))]
    kinds = kinds[:count] + ["plain"] * (count - len(kinds))
    rng.shuffle(kinds)
    fixed = [one for one in requests() if one.adapter != MOVING and one.form in ("prompt", "messages")]
    moving = [one for one in requests() if one.adapter == MOVING]
    special: dict[Kind, list[Request]] = {
        "structured": [one for one in requests() if one.form in ("choice", "regex")],
        "sampled": [one for one in requests() if one.form == "sampled"],
    }
    for number, kind in enumerate(kinds):
        pool = special.get(kind, fixed)
        if kind == "plain" and rng.random() < MOVING_SHARE:
            pool = moving
        request = rng.choice(pool)
        has_key = kind in ("same_key", "other_payload") or rng.random() < 0.2
        # That the first of two payloads is the job is known only once the ledger has it.
        by_ledger = kind == "other_payload" or rng.random() < LEDGER_SHARE
        receiver = None
        if rng.random() < WEBHOOK_SHARE:
            (receiver,) = rng.choices(list(RECEIVERS), list(RECEIVERS.values()))
        yield PlannedJob(
            number=number,
            kind=kind,
            request=request.name,
            adapter=request.adapter,
            tenant=rng.choice(TENANTS),
            confirm="ledger" if by_ledger else "stream",
            has_key=has_key,
            priority=rng.choices(("high", "normal", "low"), (1, 8, 1))[0],
            receiver=receiver,
            deadline_s=rng.choice((0.2, 600.0)) if kind == "deadline" else None,
            other=rng.choice([one.name for one in fixed if one != request])
            if kind == "other_payload"
            else None,
        )


def _faults(jobs: int, kills: int, rng: random.Random) -> Iterator[Fault]:
    found = [*_kills(kills, rng), *_others(kills, rng)] if kills else []
    rng.shuffle(found)
    # Between the first jobs, which warm everything up, and the last, which must still be there to suffer.
    first, last = jobs * 0.05, jobs * 0.9
    places = [0, *itertools.accumulate(_gap(*pair) for pair in itertools.pairwise(found))]
    step = (last - first) / (places[-1] + 1)
    for place, (kind, target, for_s) in zip(places, found, strict=False):
        yield Fault(int(first + place * step), kind, target, for_s)


def _gap(before: tuple[FaultKind, str, float], after: tuple[FaultKind, str, float]) -> int:
    """How long nothing is done between two faults: longer beside a worker's kill, whose recovery is timed."""
    return QUIET_GAP if ("kill", "worker") in (before[:2], after[:2]) else 1


def _kills(count: int, rng: random.Random) -> list[tuple[FaultKind, str, float]]:
    """Half at hook points, half by the clock, each in turn, so that every one comes as often as any other."""
    points, targets = [point.name for point in POINTS], list(KILLED)
    rng.shuffle(points)
    rng.shuffle(targets)
    at_hooks: list[tuple[FaultKind, str, float]] = [
        ("hook", points[number % len(points)], 0.0) for number in range((count + 1) // 2)
    ]
    return at_hooks + [("kill", targets[number % len(targets)], 0.0) for number in range(count // 2)]


def _others(kills: int, rng: random.Random) -> list[tuple[FaultKind, str, float]]:
    """What comes on top: with a hundred kills, at least five of each server's restarts."""
    each = max(1, math.ceil(kills / 20))
    servers: Sequence[FaultKind] = ("restart_redis", "kill_redis", "restart_postgres", "kill_postgres")
    found: list[tuple[FaultKind, str, float]] = [(kind, "", 0.0) for kind in servers for _ in range(each)]
    first = rng.randrange(len(STOPS_S))
    found += [
        ("stop", target, STOPS_S[(first + turn + place) % len(STOPS_S)])
        for turn in range(each)
        for place, target in enumerate(STOPPED)
    ]
    found += [("slow_postgres", "", 6.0), ("read_only_postgres", "", 5.0), ("full_redis", "", 5.0)] * each
    return [*found, ("flush_redis", "", 0.0), ("rolling_restart", "", 0.0)]
