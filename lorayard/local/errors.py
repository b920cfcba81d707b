"""Every error of the local stack, in one tree.

LorayardError
└── LocalStackError
    ├── BinaryNotFound       neither a wheel nor the PATH holds a server's program
    ├── CardsUnavailable     workers were to have cards, and there are none, too few, or others
    ├── ChildFailed          a process of the stack died, or was not ready in time; carries its log's tail
    ├── PortUnavailable      the port asked for is taken, or no free one was found
    ├── ServerDataError      a server's data directory cannot be used as it is
    ├── StateDirectoryBusy   another process holds the state directory
    └── UnknownPart          the stack has no process of this name
"""

from __future__ import annotations

from lorayard.contract.errors import LorayardError


class LocalStackError(LorayardError):
    """Anything that keeps the local stack from starting or running."""


class BinaryNotFound(LocalStackError):
    """Neither an installed wheel nor the PATH holds a server's program."""


class CardsUnavailable(LocalStackError):
    """Workers were to have cards that this machine does not offer; the message says what was looked at."""


class ChildFailed(LocalStackError):
    """A process of the stack died or was not ready in time; `log_tail` is what it said last."""

    def __init__(self, message: str, log_tail: str) -> None:
        super().__init__(f"{message}\n{log_tail}" if log_tail else message)
        self.log_tail = log_tail


class PortUnavailable(LocalStackError):
    """The port asked for is taken, or no free port was found."""


class ServerDataError(LocalStackError):
    """A server's data directory cannot be used as it is."""


class StateDirectoryBusy(LocalStackError):
    """Another process holds the state directory; the message says which."""


class UnknownPart(LocalStackError):
    """The stack has no process of this name."""
