"""Train the tiny base and its adapters: `python -m examples.tiny.train`, 15 to 25 minutes on 2 cores.

Needs the `dev` extra (transformers, peft). What is already on disk is kept, so a run that was
stopped goes on with the next stage; `--again base upper` trains the named stages anew. The base
is the ground that all adapters stand on: train it anew and they have to be trained anew too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from examples.tiny.recipe import ADAPTERS, ADAPTERS_DIR, BASE_DIR, BASE_SCHEDULE
from examples.tiny.training import train_adapter, train_base

_BASE = "base"


def main() -> None:
    """Run the stages whose result is missing, and those named."""
    parser = argparse.ArgumentParser(description="Train the tiny base and its adapters.")
    parser.add_argument("--again", nargs="+", default=[], choices=[_BASE, *ADAPTERS], metavar="STAGE")
    parser.add_argument(
        "--threads", type=int, default=2, help="torch threads; another count changes last bits"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    again = set(ADAPTERS) | {_BASE} if _BASE in arguments.again else set(arguments.again)
    if _BASE in again or not _is_there(BASE_DIR / "model.safetensors"):
        train_base(BASE_DIR, BASE_SCHEDULE)
    for task, recipe in ADAPTERS.items():
        if task in again or not _is_there(ADAPTERS_DIR / task / "adapter_model.safetensors"):
            train_adapter(task, BASE_DIR, ADAPTERS_DIR / task, recipe.schedule())


def _is_there(path: Path) -> bool:
    if path.exists():
        print(f"kept {path}")
    return path.exists()


if __name__ == "__main__":
    main()
