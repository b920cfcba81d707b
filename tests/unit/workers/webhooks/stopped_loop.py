"""Moves a loop's clock as a stop of its process does: all that is timed is due at once."""

from __future__ import annotations

import asyncio


async def jump(seconds: float) -> None:
    """Have the clock of the running loop jump, and return when what is due by then has had its turn."""
    loop = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + seconds  # type: ignore[method-assign]
    for _ in range(3):
        await asyncio.sleep(0.0)
