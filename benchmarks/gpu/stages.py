"""The stages by name, the shares of the time they get, and how one is run in this process."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.device import Device
from benchmarks.gpu.records import Recorder

SHARES_S = {
    "environment": 15,
    "kernels-right": 80,
    "engine-right": 80,
    "step-times": 150,
    "quantized-times": 60,
    "trace": 25,
    "kernel-times": 60,
    "adapters": 40,
    "serve": 70,
}
"""Seconds of each stage if all are run; what one leaves over goes to those that follow."""


def run_stage(name: str, folder: Path, *, rehearse: bool) -> int:
    """Run a stage in this process; return its exit status."""
    recorder = Recorder(folder, name)
    is_done = False
    with recorder.alone(name), _quick_interpreter() if rehearse else nullcontext():
        # Imported here: what a stage cannot import is that stage's failure.
        module = import_module(f"benchmarks.gpu.{name.replace('-', '_')}")
        module.run(Device("cpu" if rehearse else "cuda"), recorder)
        is_done = True
    return 0 if is_done else 1


def _quick_interpreter() -> AbstractContextManager[None]:
    # A card's stages need no interpreter.
    from benchmarks.gpu.interpreter import quicken, unchecked_integers

    quicken()
    return unchecked_integers()
