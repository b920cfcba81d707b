"""When a webhook is tried again, and when it is given up; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RETRY_DELAYS_S = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Waits after the first, second, ... failed try: three days in all, as the specification recommends."""

JITTER = 0.2
"""A delay is lengthened by up to this share, so that tries which failed together do not return together."""

MAX_RETRY_AFTER_S = 86400.0
_GONE = 410
_THROTTLED = (429, 503)


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """What came of one try; `status` is None if no answer came, `refused` if we would not even ask.

    `is_ours` if it says nothing about the receiver, `is_soon` if it is tried again after the first delay.
    """

    status: int | None
    error: str = ""
    retry_after_s: float | None = None
    refused: bool = False
    is_ours: bool = False
    is_soon: bool = False

    @property
    def accepted(self) -> bool:
        """Only 2xx counts: a redirect is not followed, since it would carry the payload elsewhere."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class DeliveryVerdict:
    """What to do with a delivery after a try; `in_s` is set if it is tried again."""

    action: Literal["delivered", "retry", "dead"]
    in_s: float = 0.0


def judge(
    attempt: DeliveryAttempt, tries: int, uniform: float, delays_s: tuple[float, ...] = RETRY_DELAYS_S
) -> DeliveryVerdict:
    """Decide after the `tries`-th try; `uniform` in [0, 1) is the jitter's draw."""
    if attempt.accepted:
        return DeliveryVerdict("delivered")
    if attempt.refused or attempt.status == _GONE or tries > len(delays_s):
        return DeliveryVerdict("dead")
    delay_s = delays_s[0 if attempt.is_soon else tries - 1] * (1.0 + JITTER * uniform)
    if attempt.status in _THROTTLED and attempt.retry_after_s is not None:
        delay_s = max(delay_s, min(attempt.retry_after_s, MAX_RETRY_AFTER_S))
    return DeliveryVerdict("retry", delay_s)
