"""Who may submit: the tenants of the ledger, and newcomers if they are welcome."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

from sqlalchemy import Connection

from db.repositories.tenants import TenantRepository

MAX_KNOWN: Final = 2_000
"""So many names are remembered; the others are read again when they come."""


class Tenancy:
    """Mutable: remembers tenants that it has seen in the ledger; none of them ever leaves that."""

    def __init__(self, *, auto_tenants: bool, seal: Callable[[], bytes] | None) -> None:
        self._auto_tenants = auto_tenants
        self._seal = seal
        self._known: dict[str, None] = {}
        """As a set, in the order in which they were read."""

    def admit(self, connection: Connection, names: Collection[str]) -> set[str]:
        """Tell which of some names may submit; enters the others if newcomers are welcome.

        A name just entered is remembered only once it is read back, because this transaction may yet fail.
        """
        unknown = set(names) - self._known.keys()
        if unknown:
            tenants = TenantRepository(connection)
            found = tenants.known(unknown)
            self._remember(found)
            unknown -= found
            if unknown and self._auto_tenants:
                tenants.ensure_all(unknown, self._seal)
                return set(names)
        return set(names) - unknown

    def _remember(self, names: Iterable[str]) -> None:
        self._known.update(dict.fromkeys(names))
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
