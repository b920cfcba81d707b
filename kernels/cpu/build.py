"""Compile the CPU kernels beside their sources: `python -m kernels.cpu.build`, once torch is installed."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kernels.cpu.sources import BINDINGS, FOLDER, KERNELS, OURS, Recipe, library_path

COMMON_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w")
MAX_JOBS = 4


class Compilation(NamedTuple):
    """One source, its object file, and the flags that belong to it alone."""

    source: Path
    target: Path
    flags: tuple[str, ...]


def build() -> Path | None:
    """Return the library's path, compiled if need be; None, printing the reason, if it cannot be."""
    if problem := obstacle():
        print(f"CPU kernels not built: {problem}. The engine will run on plain torch.")  # noqa: T201
        return None
    return compiled(OURS)


def compiled(recipe: Recipe) -> Path:
    """Return a library's path, compiled if need be; RuntimeError with what g++ says if it fails."""
    import torch  # the first thing this step needs it for

    library = library_path(torch.__version__, recipe)
    if not library.exists():
        _compile(library, recipe, Path(torch.__file__).parent)
        _remove_others(library, recipe)
    return library


def obstacle() -> str | None:
    """Say what keeps kernels from being compiled here; None if nothing does."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"there is none for {platform.machine()}, only for x86-64"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    if shutil.which("g++") is None:
        return "there is no g++; install it and run this again"
    return None


def _compile(library: Path, recipe: Recipe, torch_folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as scratch:
        units = list(_units(recipe, Path(scratch), torch_folder))
        with ThreadPoolExecutor(MAX_JOBS) as pool:
            list(pool.map(_compile_unit, units))
        linked = Path(scratch) / library.name
        libraries = (f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10", "-fopenmp")
        _run("-shared", "-o", str(linked), *(str(unit.target) for unit in units), *libraries)
        linked.replace(library)  # at once, so that nobody loads half a library


def _units(recipe: Recipe, scratch: Path, torch_folder: Path) -> Iterator[Compilation]:
    includes = (f"-isystem{torch_folder / 'include'}", "-fopenmp", *recipe.bindings_flags)
    yield Compilation(FOLDER / f"{BINDINGS}.cpp", scratch / f"{BINDINGS}.o", includes)
    for kernel in KERNELS:
        for level, flags in recipe.level_flags.items():
            named = (f"-DLORAYARD_LEVEL={level}", *flags)
            yield Compilation(FOLDER / f"{kernel}.cpp", scratch / f"{kernel}-{level}.o", named)


def _compile_unit(unit: Compilation) -> None:
    _run(*COMMON_FLAGS, *unit.flags, "-c", str(unit.source), "-o", str(unit.target))


def _run(*arguments: str) -> None:
    done = subprocess.run(("g++", *arguments), capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode != 0:
        raise RuntimeError(
            f"g++ {' '.join(arguments)} failed:\n{done.stderr}\nreport this with the g++ version"
        )


def _remove_others(library: Path, recipe: Recipe) -> None:
    for old in library.parent.glob(f"{recipe.name}_cpu-*.so"):
        if old != library:
            old.unlink()


if __name__ == "__main__":
    try:
        print(build() or "")  # noqa: T201
    except RuntimeError as error:
        sys.exit(str(error))
