"""The loader process: one load after the other, on one thread, out of the engine's way."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import torch

from workers.engine.core.child_process import collect_garbage
from workers.engine.lora.loading.channel import Channel
from workers.engine.lora.loading.spec import Load, LoadSpec, Ready
from workers.engine.lora.loading.work import load


def main(file: int) -> None:
    """Serve the socket that was inherited from the engine's process until that is gone."""
    collect_garbage()
    torch.set_num_threads(1)
    _be_first_to_go()
    with socket.socket(fileno=file) as end, suppress(EOFError, ConnectionError):
        serve(Channel(end))


def serve(channel: Channel) -> None:
    """Answer loads in order until the other side is gone, which raises EOFError or ConnectionError."""
    channel.send(Ready())
    spec: LoadSpec | None = None
    while True:
        command = channel.receive()
        if isinstance(command, LoadSpec):
            spec = command
            continue
        assert isinstance(command, Load), f"the engine sent {type(command).__name__}"
        assert spec is not None, "the engine asked for a load before it sent a LoadSpec"
        channel.send(load(command.request, spec))


def _be_first_to_go() -> None:
    """If an adapter eats all memory, let the kernel end this process and not the engine."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
