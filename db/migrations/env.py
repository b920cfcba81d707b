"""Runs the migrations over the connection that `db.migrate` has opened and locked."""

from __future__ import annotations

from alembic import context

from db.models import Table


def run() -> None:
    """Walk the versions in the transaction of the caller."""
    connection = context.config.attributes.get("connection")
    if connection is None:
        raise RuntimeError(
            "the migrations have no connection: run `python -m db.migrate`, not alembic itself"
        )
    context.configure(connection=connection, target_metadata=Table.metadata, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


run()
