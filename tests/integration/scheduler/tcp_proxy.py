"""A TCP proxy whose connections can be silenced, as a firewall that drops packets does: nobody is told."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Self

POLL_S = 0.02
CHUNK_BYTES = 65_536


class TcpProxy:
    """Forwards one loopback port to another, on a thread of the test's process."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._others: dict[socket.socket, socket.socket] = {}
        self._is_dropping = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tcp-proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        for one in [*self._others, self._listener]:
            one.close()
        self._selector.close()

    def drop(self) -> None:
        """Forward nothing any more; connections stay open."""
        self._is_dropping.set()

    def restore(self) -> None:
        """Forward again, what was held back first."""
        self._is_dropping.clear()

    def _run(self) -> None:
        while not self._stopping.wait(POLL_S if self._is_dropping.is_set() else 0):
            if self._is_dropping.is_set():
                continue
            for key, _ in self._selector.select(POLL_S):
                assert isinstance(key.fileobj, socket.socket)
                self._serve(key.fileobj)

    def _serve(self, ready: socket.socket) -> None:
        if ready is self._listener:
            self._accept()
            return
        if ready not in self._others:
            return  # its other end was closed just before
        with contextlib.suppress(OSError):
            if data := ready.recv(CHUNK_BYTES):
                self._others[ready].sendall(data)
                return
        self._forget(ready)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._target)
        self._others |= {client: server, server: client}
        for one in (client, server):
            self._selector.register(one, selectors.EVENT_READ)

    def _forget(self, one: socket.socket) -> None:
        for end in (one, self._others[one]):
            del self._others[end]
            self._selector.unregister(end)
            end.close()
