"""What a request's adapters come to: an ordered list of them, each with the one scale it is added by."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from workers.engine.core.lora_request import AnyLoRA, LoRAMix, LoRARequest


class Member(NamedTuple):
    """An adapter of a composition; `lora` itself is unscaled, so that it is one key for all scales."""

    lora: LoRARequest
    scale: float  # a float32, as the kernels take it


Composition = tuple[Member, ...]
"""All adapters upon a request, in order; empty for the base model."""


class AcquiredSlot(NamedTuple):
    """Where a member was found when its sequence joined the batch."""

    revision: str
    slot: int


def composition_of(lora: AnyLoRA | None) -> Composition:
    """Return what a request for `lora` is served with."""
    if lora is None:
        return ()
    weighted = lora.members if isinstance(lora, LoRAMix) else ((lora, 1.0),)
    return tuple(Member(unscaled(one), _float32(weight * one.scale)) for one, weight in weighted)


def unscaled(lora: LoRARequest) -> LoRARequest:
    """Return the adapter that a request names, without what it does with it."""
    return lora if lora.scale == 1.0 else replace(lora, scale=1.0)


def pinned(composition: Composition, acquired: Sequence[AcquiredSlot]) -> Composition:
    """Return the composition as found: it keeps its revisions though files change while it gives way."""
    return tuple(
        member._replace(lora=replace(member.lora, revision=one.revision))
        for member, one in zip(composition, acquired, strict=True)
    )


def describe(composition: Composition) -> str:
    """Return how messages call a composition."""
    names = [repr(member.lora.lora_name) for member in composition]
    if not names:
        return "the base model"
    return f"adapter {names[0]}" if len(names) == 1 else f"adapters {', '.join(names)}"


def _float32(value: float) -> float:
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)
