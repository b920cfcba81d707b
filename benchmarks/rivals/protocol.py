"""How a measured system is talked to: a job on the command line, then one line per round each way."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.workload import Workload

MARK = "@lorayard-benchmark "
"""Starts the lines meant for the tournament; libraries print what they like between them."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one system is to serve."""

    model: str
    adapters: list[str]  # folders; as many as the workload uses
    workload: Workload
    num_threads: int
    is_compiled: bool = False  # if a system has the choice

    def to_json(self) -> str:
        """Return the job as one line."""
        fields = {"model": self.model, "adapters": self.adapters, "workload": self.workload.as_json()}
        return json.dumps(fields | {"num_threads": self.num_threads, "is_compiled": self.is_compiled})

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**fields | {"workload": Workload(**fields["workload"])})


class Rival(Protocol):
    """A system that is ready to serve its job's workload again and again."""

    version: str

    def generate(self, prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
        """Return the new tokens of every prompt, greedy, end-of-sequence ignored."""
        ...


def serve(start: Callable[[Job], Rival]) -> None:
    """Run in the child: start the system, then serve the rounds asked for on standard input."""
    job = Job.from_json(sys.argv[1])
    rival = start(job)
    _send({"version": rival.version})
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = job.workload.prompts(asked["round"])
        began_s = time.perf_counter()
        answers = rival.generate(prompts, asked["num_new_tokens"])
        seconds = time.perf_counter() - began_s
        num_tokens = sum(map(len, answers))
        _send({"seconds": seconds, "num_tokens": num_tokens, "first": [answer[0] for answer in answers]})


def _send(message: dict[str, Any]) -> None:
    print(MARK + json.dumps(message), flush=True)
