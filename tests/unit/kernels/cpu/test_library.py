"""The library is built, chosen by processor, and never loaded for other sources or another torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.cpu import library
from kernels.cpu.sources import OURS, library_path
from kernels.registry import default_level


def test_the_library_is_built_on_a_processor_that_can_use_it() -> None:
    if platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("the kernels are for x86-64 with AVX2")
    if library.LEVEL_VARIABLE in os.environ:
        pytest.skip(f"{library.LEVEL_VARIABLE} chooses the level")

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


def test_a_level_comes_from_another_library_for_its_block_only() -> None:
    before = library.available_levels()

    with library.use_library(OURS._replace(name="elsewhere"), "avx512_bf16"):
        assert library.available_levels()[0] == "avx512_bf16"
        with pytest.raises(AttributeError, match="elsewhere"):
            library.operator("swiglu", "avx512_bf16")

    assert library.available_levels() == before


WANTED = [*library.LEVELS, "neon"]
PROGRAM = f"""
import os, sys
import torch  # once for all: it takes seconds, and reads nothing of ours

for wanted in sys.argv[1:]:
    if os.fork() == 0:
        os.environ["{library.LEVEL_VARIABLE}"] = wanted
        try:
            from kernels.cpu import library
            print(library.best_level(), library.available_levels(), flush=True)
        except Exception as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def said_under() -> dict[str, str]:
    """What a process says of its levels under each value of the variable, which is read once."""
    command = [sys.executable, "-c", PROGRAM, *WANTED]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(WANTED, ran.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("wanted", library.available_levels())
def test_the_environment_lowers_the_best_level_of_a_process(
    wanted: library.Level, said_under: dict[str, str]
) -> None:
    below = library.LEVELS[library.LEVELS.index(wanted) :]

    assert said_under[wanted] == f"{wanted} {below}"


@pytest.mark.parametrize("wanted", ["neon", "avx512_bf16"])
def test_a_level_that_is_not_to_be_had_is_refused_with_those_that_are(
    wanted: str, said_under: dict[str, str]
) -> None:
    if wanted in library.available_levels():
        pytest.skip(f"this processor has {wanted}")

    error = said_under[wanted]

    assert f"LORAYARD_CPU_LEVEL is '{wanted}', which this processor or this build has not" in error
    assert error.endswith(("'torch')", "('torch',)"))


def test_another_torch_has_another_library() -> None:
    assert library_path("2.13.0+cpu") != library_path("2.14.0+cpu")


def test_what_else_a_recipe_is_made_of_changes_its_library(tmp_path: Path) -> None:
    header = tmp_path / "header.h"
    recipe = OURS._replace(other_sources=(header,))

    header.write_text("one")
    first = library_path("2.13.0", recipe)
    header.write_text("another")

    assert len({first, library_path("2.13.0", recipe), library_path("2.13.0")}) == 3
