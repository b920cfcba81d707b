"""Loader processes that outlive the engines of a test session: starting one means importing torch again."""

from __future__ import annotations

import select
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from workers.engine.lora.loading import loader
from workers.engine.lora.loading.channel import Channel
from workers.engine.lora.loading.child import LoaderChild
from workers.engine.lora.loading.spec import Load, Loaded, Ready

_START_TIMEOUT_S = 120.0


class PooledChild:
    """A loader process on loan; closing it, or forgetting it, gives it back."""

    def __init__(self, child: LoaderChild, parked: list[LoaderChild]) -> None:
        self.channel = _CountingChannel(child.channel)
        self._child = child
        self._give_back = weakref.finalize(self, _give_back, child, self.channel, parked)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exitcode(self) -> int | None:
        return self._child.exitcode

    def give_way(self, does: bool) -> None:
        self._child.give_way(does)

    def close(self) -> None:
        self._give_back()


class LoaderPool:
    """Hands out parked processes, or starts one and waits for it; `close` ends them all."""

    def __init__(self) -> None:
        self._parked: list[LoaderChild] = []

    def take(self) -> PooledChild:
        return PooledChild(self._parked.pop() if self._parked else _started(), self._parked)

    def close(self) -> None:
        while self._parked:
            self._parked.pop().close()


@contextmanager
def shared_loaders() -> Iterator[LoaderPool]:
    """Have the engines made in the block use the same loader processes, one engine after the other."""
    pool = LoaderPool()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "LoaderChild", pool.take)
        yield pool
    pool.close()


class _CountingChannel:
    """Knows whether the other side owes an answer, and says for it that it is ready."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._owes_ready = True
        self.num_owed = 0

    def fileno(self) -> int:
        return self._channel.fileno()

    def send(self, message: Any) -> None:
        self.num_owed += isinstance(message, Load)
        self._channel.send(message)

    def receive(self) -> Any:
        if self._owes_ready:
            self._owes_ready = False
            return Ready()
        message = self._channel.receive()
        self.num_owed -= isinstance(message, Loaded)
        return message


def _started() -> LoaderChild:
    child = LoaderChild()
    select.select([child.channel], [], [], _START_TIMEOUT_S)
    assert isinstance(child.channel.receive(), Ready)
    return child


def _give_back(child: LoaderChild, channel: _CountingChannel, parked: list[LoaderChild]) -> None:
    if channel.num_owed == 0:
        parked.append(child)
    else:
        child.close()
