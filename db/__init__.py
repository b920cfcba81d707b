"""The ledger: what happened to every job, and who may change it."""

from db.database import Database
from db.settings import DatabaseSettings, SecretSettings

__all__ = ["Database", "DatabaseSettings", "SecretSettings"]
