"""Ends a process at its start if what is installed would run in the place of its own code."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from typing import Final, NamedTuple

from lorayard.process.environment import refuse, run_service

PACKAGES: Final = ("db", "kernels", "lorayard", "scheduler", "workers")
_PRODUCER, _SERVER = "lorayard", "lorayard-server"


class _Owner(NamedTuple):
    """A distribution with packages that are called as ours are."""

    name: str
    release: str
    packages: tuple[str, ...]


def require_own_packages(program: str) -> None:
    """End the process with one clear line if another distribution owns a package of ours.

    A service's main module calls this before it imports such a package, which might not be ours.
    """
    if (problem := packages_problem()) is not None:
        sys.exit(run_service(lambda: refuse(program, problem)))


def packages_problem() -> str | None:
    """Say in one sentence, with the remedy, what is wrong with what is installed; None if nothing is.

    None but our distributions may own a package of ours, and those must be of one release.
    """
    owners = list(_owners())
    # The first on the path is the one that is imported.
    ours = {owner.name: owner.release for owner in reversed(owners) if owner.name in (_PRODUCER, _SERVER)}
    for owner in owners:
        if owner.name not in ours:
            remedy = f"pip uninstall {owner.name}"
            if _SERVER in ours:  # what was overwritten goes with the other's files
                remedy += f" && pip install --force-reinstall --no-deps {_SERVER}=={ours[_SERVER]}"
            return (
                f"{owner.name} {owner.release} is installed here and has a package "
                f"{', '.join(owner.packages)}, as Lorayard has, which cannot run beside it: {remedy}"
            )
    if len(set(ours.values())) > 1:
        return (
            f"{_PRODUCER} {ours[_PRODUCER]} and {_SERVER} {ours[_SERVER]} are installed, which must be of "
            f"one release: pip install '{_PRODUCER}[server]=={ours[_PRODUCER]}'"
        )
    return None


def _owners() -> Iterator[_Owner]:
    for found in distributions():
        # Not `packages_distributions()`, which takes three times as long: it parses every list of files.
        if packages := tuple(_packages(found)):
            name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
            yield _Owner(name, found.version, packages)


def _packages(found: Distribution) -> Iterator[str]:
    top_level = found.read_text("top_level.txt")
    files = "" if top_level else "\n" + (found.read_text("RECORD") or "")
    named = (top_level or "").split()
    for package in PACKAGES:
        if package in named or f"\n{package}/" in files or f"\n{package}.py," in files:
            yield package
