from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels.lora.tables import LoRASlice, PackedLoRA, Slice
from workers.engine.core.tensor_pack import TensorPack
from workers.engine.lora.loading.channel import Channel, _write, channel_pair
from workers.engine.lora.tables.adapter_weights import AdapterWeights

Pair = tuple[Channel, Channel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = channel_pair()
    ends[1].setblocking(False)
    sender, receiver = map(Channel, ends)
    yield sender, receiver
    sender.close()
    receiver.close()


def _weights(rank: int = 16) -> AdapterWeights:
    packed = PackedLoRA(
        torch.randn(rank, 32), (LoRASlice(Slice(0, 32), Slice(0, rank), torch.randn(rank, 32)),)
    )
    return AdapterWeights("sha256:1", rank, {(0, "o"): packed})  # type: ignore[dict-item]


def _maps() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:adapter")


def _files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_weights_arrive_as_they_were_sent(pair: Pair) -> None:
    sender, receiver = pair
    sent = _weights()

    sender.send(sent)
    received = receiver.receive()

    assert received.digest == sent.digest
    (key,) = sent.modules
    assert torch.equal(received.modules[key].a, sent.modules[key].a)
    assert torch.equal(received.modules[key].slices[0].b_t, sent.modules[key].slices[0].b_t)


def test_the_memory_is_free_when_the_last_tensor_upon_it_is_and_no_file_stays_open(pair: Pair) -> None:
    sender, receiver = pair
    maps, files = _maps(), _files()

    sender.send(_weights())
    received = receiver.receive()
    assert (_maps(), _files()) == (maps + 1, files)
    (tensor,) = (packed.a for packed in received.modules.values())
    del received
    assert _maps() == maps + 1
    del tensor

    assert (_maps(), _files()) == (maps, files)


def test_what_was_sent_can_neither_be_changed_nor_cut_short_by_its_sender() -> None:
    file = _write(TensorPack(_weights()))

    with pytest.raises(PermissionError):
        os.pwrite(file, b"x", 0)
    with pytest.raises(PermissionError):
        os.truncate(file, 1)

    os.close(file)


def test_a_message_without_tensors_needs_no_memory(pair: Pair) -> None:
    sender, receiver = pair
    maps = _maps()

    sender.send({"limit": 3})

    assert receiver.receive() == {"limit": 3}
    assert _maps() == maps


def test_nothing_there_and_nobody_there_are_told_apart(pair: Pair) -> None:
    sender, receiver = pair

    with pytest.raises(BlockingIOError):
        receiver.receive()
    sender.send("last words")
    sender.close()

    assert receiver.receive() == "last words"
    with pytest.raises(EOFError, match="is gone"):
        receiver.receive()


def test_what_was_sent_before_a_sudden_death_is_received(pair: Pair) -> None:
    sender, receiver = pair
    receiver.send("never read")
    sender.send("last words")

    sender.close()  # with a message unread: the kernel resets the connection

    assert receiver.receive() == "last words"
    with pytest.raises(EOFError):
        receiver.receive()
