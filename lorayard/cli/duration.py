"""Durations as people write them: 90s, 15m, 24h, 7d."""

from __future__ import annotations

import re

import typer

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_MAX_S = 100 * 365 * 86_400


def parse_duration(text: str) -> float:
    """Return seconds; raises typer.BadParameter."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
    if not 0 < seconds <= _MAX_S:
        raise typer.BadParameter(f"{text!r} is not a duration: give a number with s, m, h or d, e.g. 24h")
    return seconds
