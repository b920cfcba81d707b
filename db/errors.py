"""Every error the ledger can raise, in one tree.

DatabaseError
├── DatabaseUnavailable   Postgres cannot be reached, or went away in the middle (also a ConnectionError)
├── InvalidDatabaseUrl    the URL is not one of Postgres (also a ValueError)
├── Deposed               another leader has a higher term: this one must stop at once
│   └── ForeignLedger     Redis has the pool for another ledger
├── UnknownWorker         an incarnation that was never registered wants to write
├── SecretUnreadable      a webhook secret was encrypted with a key that is not at hand
├── SchemaLocked          the migration could not get its locks in time
├── SchemaRefused         the migration's user may not change the schema
├── UnknownSchema         the database is at a revision of a later release, or of another application
└── DowngradeRefused      the schema before cannot hold what is in the ledger, or is none of ours
"""

from __future__ import annotations


class DatabaseError(Exception):
    """Anything the ledger says has gone wrong."""


class DatabaseUnavailable(DatabaseError, ConnectionError):
    """Postgres cannot be reached, or went away during a transaction, whose fate is then unknown."""


class InvalidDatabaseUrl(DatabaseError, ValueError):
    """The URL is not one of Postgres."""


class Deposed(DatabaseError):
    """Another scheduler has become leader: nothing of this transaction may be kept."""


class ForeignLedger(Deposed):
    """Redis has the pool for another ledger: nothing of this one may be done there."""


class UnknownWorker(DatabaseError):
    """The incarnation was never registered: nothing of it may be written."""


class SecretUnreadable(DatabaseError):
    """A webhook secret was encrypted with a key that is not at hand."""


class SchemaLocked(DatabaseError):
    """The migration could not get its locks in time; nothing was changed."""


class SchemaRefused(DatabaseError):
    """The migration's user may not change the schema; nothing was changed."""


class UnknownSchema(DatabaseError):
    """The schema is of a later release, or of another application; nothing was changed."""


class DowngradeRefused(DatabaseError):
    """The schema cannot go back there; nothing was changed."""
