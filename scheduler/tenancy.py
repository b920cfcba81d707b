"""Who may submit: the tenants of the ledger, and newcomers if they are welcome."""

from __future__ import annotations

from collections.abc import Callable, Collection

from sqlalchemy import Connection

from db.repositories.tenants import TenantRepository


class Tenancy:
    """Mutable: remembers the tenants it has seen in the ledger; none of them ever leaves it."""

    def __init__(self, *, auto_tenants: bool, seal: Callable[[], bytes] | None) -> None:
        self._auto_tenants = auto_tenants
        self._seal = seal
        self._known: set[str] = set()

    def admit(self, connection: Connection, names: Collection[str]) -> set[str]:
        """Tell which of some names may submit; enters the others if newcomers are welcome.

        A name just entered is remembered only once it is read back, because this transaction may yet fail.
        """
        unknown = set(names) - self._known
        if unknown:
            tenants = TenantRepository(connection)
            self._known |= tenants.known(unknown)
            unknown -= self._known
            if unknown and self._auto_tenants:
                tenants.ensure_all(unknown, self._seal)
                return set(names)
        return set(names) - unknown
