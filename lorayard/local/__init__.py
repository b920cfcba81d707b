"""The whole of Lorayard on one machine without containers: real servers, our own processes, all children."""

from lorayard.local.child import Child, ChildSpec
from lorayard.local.config import EVERYTHING, SERVERS, PartKind, StackConfig
from lorayard.local.errors import (
    BinaryNotFound,
    CardsUnavailable,
    ChildFailed,
    LocalStackError,
    PortUnavailable,
    ServerDataError,
    StateDirectoryBusy,
    UnknownPart,
)
from lorayard.local.postgres_server import PostgresServer, plain_url
from lorayard.local.redis_server import RedisServer
from lorayard.local.settings import StackSettings
from lorayard.local.stack import Stack
from lorayard.local.up import up

__all__ = [
    "EVERYTHING",
    "SERVERS",
    "BinaryNotFound",
    "CardsUnavailable",
    "Child",
    "ChildFailed",
    "ChildSpec",
    "LocalStackError",
    "PartKind",
    "PortUnavailable",
    "PostgresServer",
    "RedisServer",
    "ServerDataError",
    "Stack",
    "StackConfig",
    "StackSettings",
    "StateDirectoryBusy",
    "UnknownPart",
    "plain_url",
    "up",
]
