"""What the stack knows of each of its processes: how to start it, tell that it serves, end it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from lorayard.local.child import Child, ChildSpec
from lorayard.local.errors import ChildFailed, LocalStackError, PortUnavailable
from lorayard.local.ports import LOOPBACK, free_port

Spawn = Callable[[ChildSpec], Child]
_PORTS_TRIED = 5


class Part(ABC):
    """One long-running process of the stack, which may be killed and started again."""

    def __init__(self, name: str, spawn: Spawn, *, start_timeout_s: float, stop_grace_s: float) -> None:
        self.name = name
        self.start_timeout_s = start_timeout_s
        self.stop_grace_s = stop_grace_s
        self._spawn = spawn
        self._child: Child | None = None

    @property
    def child(self) -> Child:
        """The process of the latest start."""
        if self._child is None:
            raise LocalStackError(f"{self.name} was not started; call start() first")
        return self._child

    @property
    def alive(self) -> bool:
        """Tell whether the part's process was launched and still runs."""
        return self._child is not None and self._child.alive

    def launch(self) -> Child:
        """Start the process and return at once; `wait_ready` tells when it serves."""
        if self.alive:
            raise LocalStackError(f"{self.name} already runs as pid {self.child.pid}; stop it first")
        self._child = self._spawn(self._spec())
        return self._child

    def wait_ready(self) -> None:
        """Return once the process serves; raise ChildFailed with the end of its log otherwise."""
        self.child.wait_ready(self.is_ready, self.start_timeout_s)

    def start(self) -> None:
        """Start the process and return once it serves."""
        self.launch()
        self.wait_ready()

    def stop(self) -> int | None:
        """End the process in order and return its exit status; None if it was never started."""
        return None if self._child is None else self._child.stop(self.stop_grace_s)

    def kill(self) -> None:
        """SIGKILL the process and everything that it started."""
        if self._child is not None:
            self._child.kill()

    def restart(self) -> None:
        """End the process in order if it runs, and start it again."""
        self.stop()
        self.start()

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether the process serves now."""

    @abstractmethod
    def _spec(self) -> ChildSpec:
        """Describe the process for its next start."""


class Server(Part):
    """A part that listens on a loopback port, the same one after every restart."""

    def __init__(
        self,
        name: str,
        spawn: Spawn,
        *,
        port: int | None,
        choose_port: Callable[[], int] = free_port,
        start_timeout_s: float = 30.0,
        stop_grace_s: float = 10.0,
    ) -> None:
        super().__init__(name, spawn, start_timeout_s=start_timeout_s, stop_grace_s=stop_grace_s)
        self._port = port
        self._choose_port = choose_port

    @property
    def port(self) -> int:
        """The port it listens on, chosen at the first start if none was asked for."""
        if self._port is None:
            raise LocalStackError(f"{self.name} has no port before its first start")
        return self._port

    def start(self) -> None:
        """Start the server and return once it serves, trying other ports if the chosen one is taken.

        Raises PortUnavailable when the port was asked for, or was used before, and is taken now.
        """
        if self._port is not None:
            return self._start_on(self._port)
        for _ in range(_PORTS_TRIED):
            self._port = self._choose_port()
            try:
                return self._start_on(self._port)
            except PortUnavailable:
                self._port = None
        raise PortUnavailable(f"{self.name}: {_PORTS_TRIED} ports chosen as free were taken; name a port")

    def _start_on(self, port: int) -> None:
        try:
            super().start()
        except ChildFailed as error:
            if "ddress already in use" in error.log_tail:
                raise PortUnavailable(
                    f"{self.name} cannot listen on {LOOPBACK}:{port}: the port is taken; free it or name "
                    "another"
                ) from error
            raise
