"""A worker's reader of commands sleeps in Redis, and is woken to stop."""

from __future__ import annotations

from typing import Any, cast
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

import workers.commands as commands_module
from lorayard.contract.keys import PoolKeys
from lorayard.local import Stack
from lorayard.transport.connections import for_service
from tests.polling import eventually
from workers.commands import CommandReader


def test_a_read_that_waits_is_ended_by_a_stop(rig: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands_module, "BLOCK_MS", 3_600_000)
    assert rig.redis is not None
    stream = PoolKeys(uuid4().hex[:16]).commands("mine")
    with for_service(rig.redis.url) as redis, for_service(rig.redis.url) as own, capture_logs() as log:
        reader = CommandReader(
            own,
            stream,
            cast("Any", None),
            on_drain=lambda: None,
            why_foreign=lambda: None,
            on_foreign=lambda _reason: None,
            on_broken=lambda _thread: None,
        )
        reader.start()
        eventually(lambda: any("b" in one["flags"] for one in redis.client_list() if one["cmd"] == "xread"))

        reader.close()

    assert not reader._thread.is_alive
    assert log == []
