"""Training runs from its script's functions and gives the same files each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.tiny.recipe import Schedule
from examples.tiny.training import train_adapter, train_base

SHORT = Schedule(num_steps=2, peak_lr=1e-3, seed=1, batch_size=4, num_warmup_steps=1)

# PEFT 0.21 asks for a property that transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_trainings_write_the_same_bytes(tmp_path: Path) -> None:
    runs = tmp_path / "first", tmp_path / "second"

    for run in runs:
        train_base(run / "base", SHORT)
        train_adapter("sort", run / "base", run / "sort", SHORT)

    first, second = map(files, runs)
    assert first == second
    assert set(first) == {
        "base/config.json",
        "base/generation_config.json",
        "base/model.safetensors",
        "base/tokenizer.json",
        "base/tokenizer_config.json",
        "sort/adapter_config.json",
        "sort/adapter_model.safetensors",
    }
