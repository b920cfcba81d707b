"""Where the example keeps what it makes: a checkpoint and one folder per adapter, each whole or absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.real.checkpoint import find_weights, make_checkpoint
from examples.real.tasks import TASKS
from examples.real.training import train_adapter

BASE = "base"


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders under `root`."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / BASE

    @property
    def adapters(self) -> dict[str, Path]:
        return {name: self.root / name for name in TASKS}

    def make_missing(self, again: Sequence[str] = ()) -> None:
        """Make the checkpoint and train the adapters that are absent or named in `again`.

        Adapters stand on the base: "base" makes them all anew. Raises PackageMissing.
        """
        if BASE in again:
            again = (BASE, *TASKS)
        if BASE in again or not self.base.exists():
            weights = find_weights()
            print(f"making {self.base} of {weights}", flush=True)
            with written_whole(self.base) as folder:
                make_checkpoint(weights, folder)
        for name, target in self.adapters.items():
            if name in again or not target.exists():
                print(f"training {target}", flush=True)
                with written_whole(target) as folder:
                    train_adapter(TASKS[name], self.base, folder)


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give a folder to write to, which becomes `target` once the block has ended well."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
