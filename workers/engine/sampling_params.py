"""How one request wants its tokens chosen, refused with value and remedy when it cannot be done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workers.engine.errors import InvalidParams

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1000
_MAX_SEED = 2**63 - 1
_MAX_TEMPERATURE = 100.0


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters named as in vLLM; `temperature=0` is greedy, `top_k=0` or -1 means every token."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _require_int("max_tokens", self.max_tokens, 1, None)
        _require_number("temperature", self.temperature, 0.0, _MAX_TEMPERATURE)
        _require_number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise InvalidParams("top_p is 0; give a number in (0, 1], or temperature=0 for greedy decoding")
        _require_int("top_k", self.top_k, -1, None)
        if self.seed is not None:
            _require_int("seed", self.seed, 0, _MAX_SEED)
        for token_id in self.stop_token_ids or ():
            _require_int("stop_token_ids", token_id, 0, None)
        self._require_stop_strings()

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, whatever form they were given in."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def _require_stop_strings(self) -> None:
        if len(self.stop_strings) > MAX_STOP_STRINGS:
            raise InvalidParams(f"{len(self.stop_strings)} stop strings; give at most {MAX_STOP_STRINGS}")
        for text in self.stop_strings:
            if not isinstance(text, str) or not text or len(text) > MAX_STOP_STRING_CHARS:
                raise InvalidParams(
                    f"stop string {text!r:.80} is not served; give 1 to {MAX_STOP_STRING_CHARS} characters"
                )


def _require_int(name: str, value: object, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidParams(f"{name} is {value!r}; give an integer")
    if value < low or (high is not None and value > high):
        raise InvalidParams(f"{name} is {value}; give an integer {_range_text(low, high)}")


def _require_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidParams(f"{name} is {value!r}; give a finite number")
    if not low <= value <= high:
        raise InvalidParams(f"{name} is {value}; give a number {_range_text(low, high)}")


def _range_text(low: float, high: float | None) -> str:
    return f"of at least {low}" if high is None else f"between {low} and {high}"
