"""Values and tensors between two processes: each message is a piece of shared memory without a name.

The memory is a sealed memfd whose descriptor travels over a Unix socket. Nothing is left behind when either
side is killed, the receiver copies nothing, and the memory is free when the last tensor upon it is.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

import torch
from torch import Tensor

from workers.engine.core.tensor_pack import TensorPack, unpack

_HEADER = struct.Struct("<qq")  # bytes of tensors, bytes of the skeleton behind them
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets; a message arrives whole or not at all: nobody waits for half of one."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    """One end of a pair."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        """Return the socket's descriptor, so that the channel can be waited for."""
        return self._socket.fileno()

    def send(self, message: Any) -> None:
        """Hand a message over; raises OSError when the other side is gone."""
        pack = TensorPack(message)
        file = _write(pack)
        try:
            header = _HEADER.pack(pack.num_bytes, len(pack.skeleton))
            socket.send_fds(self._socket, [header], [file])
        finally:
            os.close(file)

    def receive(self) -> Any:
        """Return the next message, waiting for it if the socket does.

        Raises BlockingIOError if there is none and the socket does not wait, EOFError when the other side is
        gone and all it sent has been received.
        """
        try:
            header, files, _, _ = self._receive_datagram()
        except ConnectionResetError:  # it died with messages unread; what it sent before is still there
            header, files, _, _ = self._receive_datagram()
        if not files:
            raise EOFError("the other side of the channel is gone")
        (file,) = files
        try:
            return _read(file, *_HEADER.unpack(header))
        finally:
            os.close(file)

    def close(self) -> None:
        """Close this end; the other side's next call fails."""
        self._socket.close()

    def _receive_datagram(self) -> tuple[bytes, list[int], int, Any]:
        return socket.recv_fds(self._socket, _HEADER.size, 1, socket.MSG_CMSG_CLOEXEC)


def _write(pack: TensorPack) -> int:
    file = os.memfd_create("adapter", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(file, pack.num_bytes + len(pack.skeleton))
        pack.write(_map(file, pack.num_bytes, shared=True))
        os.pwrite(file, pack.skeleton, pack.num_bytes)
        # From here on neither side can change a byte, nor shrink the file under the other's feet.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(file)
        raise
    return file


def _read(file: int, num_bytes: int, num_skeleton_bytes: int) -> Any:
    skeleton = os.pread(file, num_skeleton_bytes, num_bytes)
    return unpack(skeleton, _map(file, num_bytes, shared=False))


def _map(file: int, num_bytes: int, *, shared: bool) -> Tensor:
    """Map the tensors' part; unlike `mmap`, torch keeps no descriptor open for as long as the map lives."""
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_file(f"/proc/self/fd/{file}", shared=shared, size=num_bytes, dtype=torch.uint8)
