"""The library is built, chosen by processor, and never loaded for other sources or another torch."""

from __future__ import annotations

import platform

import pytest
import torch

from kernels.cpu import library
from kernels.cpu.sources import library_path
from kernels.registry import default_level


def test_the_library_is_built_on_a_processor_that_can_use_it() -> None:
    if platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("the kernels are for x86-64 with AVX2")

    assert library.best_level() != "torch", "run `python -m kernels.cpu.build`"


def test_a_level_is_in_force_for_its_block_only() -> None:
    before = library.level()

    with library.use_level("torch"):
        assert library.level() == "torch"
        assert default_level("cpu") == "torch"

    assert library.level() == before


def test_an_unknown_level_is_refused_with_those_to_be_had() -> None:
    unknown = library.use_level("neon")  # type: ignore[arg-type]

    with (
        pytest.raises(ValueError, match=r"level 'neon' is not to be had here; give one of \(.*'torch'"),
        unknown,
    ):
        pass


def test_another_torch_has_another_library() -> None:
    assert library_path("2.13.0+cpu") != library_path("2.14.0+cpu")
