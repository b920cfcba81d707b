"""What others say will be needed, in which order: a hint to load ahead while nothing else is loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.residency.loads import load_key


class Expected(NamedTuple):
    """An adapter that will be needed, and when: 0 is next."""

    request: LoRARequest
    turn: int


class ResidencyPlan:
    """The latest hint; a new one takes the place of all that the last one said."""

    def __init__(self) -> None:
        self._to_load: deque[Expected] = deque()
        self._turns: dict[str, int] = {}

    def replace(self, wanted: Sequence[LoRARequest | str]) -> None:
        """Expect these from now on; a bare revision can be kept, but not loaded."""
        asked = [Expected(one, turn) for turn, one in enumerate(wanted) if isinstance(one, LoRARequest)]
        self._to_load = deque(asked)
        self._turns = {load_key(one.request): one.turn for one in asked}

    def turn_of(self, request: LoRARequest) -> int | None:
        """Return when a request's adapter is expected to be needed; None if nobody said so."""
        return self._turns.get(load_key(request))

    def next(self) -> Expected | None:
        """Return the next adapter to look after, which is then looked after; None when all are."""
        return self._to_load.popleft() if self._to_load else None

    def give_up(self) -> None:
        """Load nothing more ahead: there is no place for it."""
        self._to_load.clear()
