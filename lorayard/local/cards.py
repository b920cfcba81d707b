"""Finds the cards that workers of this machine can be given, without loading what would use them."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from lorayard.local.errors import CardsUnavailable

VISIBLE = "CUDA_VISIBLE_DEVICES"
HIDDEN = {VISIBLE: ""}
"""What processes are told that shall touch no card."""

_SMI = "nvidia-smi"
_SMI_TIMEOUT_S = 30.0
"""A card that hangs makes nvidia-smi hang."""

_REMEDY = "let this machine see a card, or run the workers with --device cpu"
_CARD = re.compile(r"GPU \d+: .*\(UUID: (GPU-[^)]+)\)")
_SLICE = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")
_NAME = re.compile(r"\d+|GPU-.+|MIG-.+")
_USED = 0.9
"""What the workers of one card may use of its memory together, if nothing else is said."""


@dataclass(slots=True)
class _Card:
    """A card that nvidia-smi lists, with the MIG instances that stand in for it where it is cut up."""

    uuid: str
    slices: list[str]


def cards_for(device: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return what `CUDA_VISIBLE_DEVICES` calls each card that workers on `device` may have, in order.

    `device` is "cpu", which has none, "cuda", which has all that are visible, or "cuda:N". What
    `CUDA_VISIBLE_DEVICES` names is kept as it is written there, else cards go by their UUIDs: CUDA and
    nvidia-smi count them in different orders. Raises CardsUnavailable.
    """
    if device == "cpu":
        return ()
    visible = _visible_cards(environment)
    _, _, number = device.partition(":")
    if not number:
        return visible
    if int(number) >= len(visible):
        raise CardsUnavailable(
            f"device is {device!r}, but {_counted(visible)}: give cuda:0 to cuda:{len(visible) - 1}, or cuda"
        )
    return (visible[int(number)],)


def check_workers(cards: tuple[str, ...], num_workers: int, *, shared: bool) -> None:
    """Refuse more workers than cards, unless they are meant to share; raises CardsUnavailable."""
    if num_workers > len(cards) and not shared:
        raise CardsUnavailable(
            f"{num_workers} workers, each with a card of its own, but {_counted(cards)}: "
            f"give --workers {len(cards)}, or --share-gpus to have several workers use one card"
        )


def memory_share(cards: tuple[str, ...], num_workers: int, wished: float | None) -> float | None:
    """Return the share of its card's memory that each worker gets; None leaves it to the worker.

    Raises CardsUnavailable if what was wished for does not fit as often as workers share a card.
    """
    a_card = math.ceil(num_workers / len(cards)) if cards else 1
    if wished is None:
        return math.floor(1000 * _USED / a_card) / 1000 if a_card > 1 else None
    if wished * a_card > 1 and a_card > 1:
        most = math.floor(100 / a_card) / 100
        raise CardsUnavailable(
            f"{a_card} workers share a card and LORAYARD_GPU_MEMORY_UTILIZATION is {wished:g} for each, "
            f"{wished * a_card:g} of its memory together: lower it to {most:g} or less"
        )
    return wished


def _visible_cards(environment: Mapping[str, str]) -> tuple[str, ...]:
    listed = _listed_cards(environment)
    named = environment.get(VISIBLE)
    if named is not None:
        return _named_cards(named, listed)
    if listed is None:
        raise CardsUnavailable(f"no {_SMI} is on the PATH, and {VISIBLE} is not set: {_REMEDY}")
    found = [name for card in listed for name in card.slices or [card.uuid]]
    if not found:
        raise CardsUnavailable(f"{_SMI} -L lists no card, and {VISIBLE} is not set: {_REMEDY}")
    return tuple(found)


def _named_cards(named: str, listed: list[_Card] | None) -> tuple[str, ...]:
    names = [name.strip() for name in named.split(",")]
    if names in ([""], ["-1"]):
        raise CardsUnavailable(f"{VISIBLE}={named!r} hides every card: unset it, or {_REMEDY}")
    for place, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise CardsUnavailable(
                f"{VISIBLE}={named!r} has {name!r}: name cards by their number, GPU-... or MIG-..."
            )
        if name in names[:place]:
            raise CardsUnavailable(f"{VISIBLE}={named!r} has {name!r} twice: name each card once")
        if listed is not None and not _is_listed(name, listed):
            count = _counted([card.uuid for card in listed])
            raise CardsUnavailable(f"{VISIBLE}={named!r} has {name!r}, but {count}: see {_SMI} -L")
    return tuple(names)


def _is_listed(name: str, listed: list[_Card]) -> bool:
    if name.isdigit():
        return int(name) < len(listed)
    if name.startswith("MIG-GPU-"):
        return True  # older drivers' way, which nvidia-smi does not list any more
    uuids = [uuid for card in listed for uuid in (card.uuid, *card.slices)]
    return sum(uuid.startswith(name) for uuid in uuids) == 1  # CUDA takes the beginning of one


def _listed_cards(environment: Mapping[str, str]) -> list[_Card] | None:
    """Ask nvidia-smi; None if there is none on the PATH."""
    program = shutil.which(_SMI, path=environment.get("PATH") or os.defpath)
    if program is None:
        return None
    try:
        run = subprocess.run(  # noqa: S603 - the program that the PATH names, with an argument of ours
            [program, "-L"],
            env=dict(environment),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CardsUnavailable(f"{program} -L gives no list of cards ({error}): {_REMEDY}") from error
    if run.returncode != 0:
        said = " ".join((run.stdout + run.stderr).split())
        raise CardsUnavailable(f"{program} -L ended with status {run.returncode} ({said}): {_REMEDY}")
    return _parsed(run.stdout)


def _parsed(listing: str) -> list[_Card]:
    cards: list[_Card] = []
    for line in listing.splitlines():
        if match := _CARD.match(line):
            cards.append(_Card(match[1], []))
        elif cards and (match := _SLICE.match(line)):
            cards[-1].slices.append(match[1])
    return cards


def _counted(cards: list[str] | tuple[str, ...]) -> str:
    if not cards:
        return "no card is visible"
    return f"{len(cards)} {'card is' if len(cards) == 1 else 'cards are'} visible ({', '.join(cards)})"
