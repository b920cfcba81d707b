"""Brings adapters to the device: at once where it shares the host's memory, else by a thread and a stream."""

from __future__ import annotations

import threading
from queue import SimpleQueue

import torch
from torch import Tensor

from workers.engine.core.errors import EngineError
from workers.engine.lora.residency.adapter_memory import Copier, Done

_STAGE_BYTES = 32 << 20
_NUM_STAGES = 2
"""One is filled while the other is on its way."""


def copier_for(device: torch.device) -> Copier:
    """Return what copies to a device."""
    return PinnedCopier(device) if device.type == "cuda" else DirectCopier()


class DirectCopier:
    """Copies in the caller's thread, which waits for it."""

    def copy(self, pieces: list[tuple[Tensor, Tensor]]) -> Done:
        """Copy."""
        for source, target in pieces:
            target.copy_(source)
        return Done()

    def close(self) -> None:
        """Do nothing."""


class _Transfer:
    """One adapter on its way through the stages."""

    def __init__(self, pieces: list[tuple[Tensor, Tensor]]) -> None:
        self.pieces = pieces  # hold the host's memory until it is read
        self.error: BaseException | None = None
        self._ended = threading.Event()

    @property
    def is_done(self) -> bool:
        """Whether it is there; raises what stopped it."""
        if not self._ended.is_set():
            return False
        self._raise()
        return True

    def wait(self) -> None:
        """Return when it is there; raises what stopped it."""
        self._ended.wait()
        self._raise()

    def end(self, error: BaseException | None) -> None:
        """Note that it is there, or why it never will be."""
        self.error, self.pieces = error, []
        self._ended.set()

    def _raise(self) -> None:
        if self.error is not None:
            raise EngineError(f"an adapter could not be copied to the device: {self.error}") from self.error


class PinnedCopier:
    """A thread fills two pinned stages by turns, and a stream of its own empties them into the device.

    Pageable memory cannot be read by the device beside other work, so that a copy straight from the loader's
    memory would hold up the engine's thread. The thread is done with a transfer when the device is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._queue: SimpleQueue[_Transfer | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="adapter-copies", daemon=True)
        self._thread.start()

    def copy(self, pieces: list[tuple[Tensor, Tensor]]) -> _Transfer:
        """Queue a transfer."""
        transfer = _Transfer(pieces)
        self._queue.put(transfer)
        return transfer

    def close(self) -> None:
        """End the thread when it has done what is queued."""
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        stages: list[Tensor] = []
        while (transfer := self._queue.get()) is not None:
            error: BaseException | None = None
            try:
                stages = stages or self._stages()
                self._run(transfer.pieces, stages)
            except BaseException as reason:  # noqa: BLE001  whoever waits is told
                error = reason
            transfer.end(error)

    def _stages(self) -> list[Tensor]:
        torch.cuda.set_device(self._device)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._emptied = [torch.cuda.Event() for _ in range(_NUM_STAGES)]  # type: ignore[no-untyped-call]
        return [torch.empty(_STAGE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(_NUM_STAGES)]

    def _run(self, pieces: list[tuple[Tensor, Tensor]], stages: list[Tensor]) -> None:
        turn = 0
        with torch.cuda.stream(self._stream):
            for source, target in pieces:
                for start in range(0, source.numel(), _STAGE_BYTES):
                    part, goal = (one[start : start + _STAGE_BYTES] for one in (source, target))
                    self._emptied[turn].synchronize()
                    stage = stages[turn][: part.numel()]
                    stage.copy_(part)
                    goal.copy_(stage, non_blocking=True)
                    self._emptied[turn].record()
                    turn = (turn + 1) % _NUM_STAGES
        self._stream.synchronize()
