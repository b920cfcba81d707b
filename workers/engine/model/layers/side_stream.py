"""A second stream while a step is captured: what is forked to it runs beside the main one in every replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

_Result = TypeVar("_Result")


class SideStream:
    """Forks and joins that become edges of the graph; for single launches they would cost the host more."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def is_open(self) -> bool:
        """Whether launches are being captured."""
        return torch.cuda.is_current_stream_capturing()

    def fork(self, work: Callable[[], _Result]) -> _Result:
        """Launch work there that needs what has been launched so far; `join` before its result is read."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            return work()

    def join(self) -> None:
        """Have what is launched from now on wait for all that was forked."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def side_stream_of(device: torch.device) -> SideStream | None:
    """Return the second stream of a GPU; None for other devices."""
    return SideStream(device) if device.type == "cuda" else None
