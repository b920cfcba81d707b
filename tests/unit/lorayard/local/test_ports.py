"""Ports are free, on loopback and out of the way of outgoing connections."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lorayard.local import ports
from lorayard.local.errors import PortUnavailable
from lorayard.local.ports import LOOPBACK, free_port, is_free


def test_a_listener_makes_its_port_taken() -> None:
    with socket.create_server((LOOPBACK, free_port())) as listener:
        assert not is_free(listener.getsockname()[1])


def test_a_chosen_port_lies_below_the_ephemeral_range(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel_range = tmp_path / "ip_local_port_range"
    kernel_range.write_text("12000\t60999\n")
    monkeypatch.setattr(ports, "_EPHEMERAL_RANGE", kernel_range)

    assert all(10_000 <= free_port() < 12_000 for _ in range(50))


def test_a_machine_without_a_free_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda port: False)

    with pytest.raises(PortUnavailable, match="no free port among 200"):
        free_port()
