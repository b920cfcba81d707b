"""What was read of a checkpoint leaves memory with its tensor, whichever others are still in use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workers.engine.model.checkpoint import CheckpointReader


def num_maps(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    large = {name: torch.full((512, 256), value) for name, value in (("one", 1.0), ("two", 2.0))}
    save_file({**large, "small": torch.ones(4)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_large_tensor_has_a_map_of_its_own_which_goes_with_it(folder: Path) -> None:
    path = folder / "model.safetensors"

    with CheckpointReader(folder, torch.float32) as reader:
        one = reader.read("one", (512, 256))
        two = reader.read("two", (512, 256))
        with_both = num_maps(path)
        assert one.eq(1).all()
        del one
        with_one = num_maps(path)

    assert (with_both - with_one, two.eq(2).all().item()) == (1, True)
    assert num_maps(path) == 1
    del two
    assert num_maps(path) == 0


def test_small_tensors_share_the_reader_s_map(folder: Path) -> None:
    with CheckpointReader(folder, torch.float32) as reader:
        reader.read("small", (4,))

        assert num_maps(folder / "model.safetensors") == 1
