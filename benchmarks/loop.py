"""What the engine's loop costs per step beside its model: `python -m benchmarks.loop [--profile]`."""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.checkpoint_files import CACHE, adapter_folders, checkpoint_folder
from benchmarks.rivals.lorayard_engine import OurEngine
from benchmarks.rivals.protocol import Job
from benchmarks.workload import Geometry, Workload
from workers.engine.core.step_input import ForwardInput, SamplingInput, StepOutput
from workers.engine.serving.executor import InFlightStep

_ROUNDS = 8


class NoModel:
    """An executor that answers every row with the same token at once."""

    look_ahead = 0
    num_replayed_steps = 0

    def __init__(self) -> None:
        self.num_steps = 0

    def forward(self, step: ForwardInput) -> ForwardInput:
        """Count a step."""
        self.num_steps += 1
        return step

    def sample(self, _: InFlightStep, sampling: SamplingInput) -> NoTokens:
        """Choose token 3 for each sampled row."""
        return NoTokens(sampling.num_rows)


class NoTokens(NamedTuple):
    """What comes of a step without a model."""

    num_rows: int

    def wait(self) -> StepOutput:
        """Return token 3 for each row."""
        return StepOutput([3] * self.num_rows, [False] * self.num_rows)


def main() -> None:
    """Print the best round's time per step, with and without adapters."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER")
    parser.add_argument("--profile", action="store_true", help="also show where the time goes")
    options = parser.parse_args()
    for num_adapters in (0, 8):
        engine, model = _start(options.cache, Workload(num_adapters))
        best_ms = min(_round_ms(engine, model, Workload(num_adapters), number) for number in range(_ROUNDS))
        print(f"{num_adapters} adapters, 32 requests: {best_ms:.3f} ms per step without the model")
        if options.profile:
            profile = cProfile.Profile()
            profile.runcall(_round_ms, engine, model, Workload(num_adapters), _ROUNDS)
            pstats.Stats(profile).sort_stats("tottime").print_stats(20)


def _start(cache: Path, workload: Workload) -> tuple[OurEngine, NoModel]:
    geometry = Geometry()
    base = checkpoint_folder(cache, geometry, workload.seed)
    adapters = adapter_folders(
        cache, base, geometry, rank=workload.rank, num_adapters=workload.num_adapters, seed=workload.seed
    )
    ours, model = OurEngine(Job(str(base), [str(folder) for folder in adapters], workload, 2)), NoModel()
    ours.engine._parts = ours.engine._parts._replace(executor=model)
    return ours, model


def _round_ms(ours: OurEngine, model: NoModel, workload: Workload, number: int) -> float:
    steps_before, began_s = model.num_steps, time.perf_counter()
    ours.generate(workload.prompts(number), workload.num_new_tokens)
    return (time.perf_counter() - began_s) * 1000.0 / (model.num_steps - steps_before)


if __name__ == "__main__":
    main()
