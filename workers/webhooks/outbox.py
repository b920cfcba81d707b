"""The relay's side of the ledger, each call one short transaction off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Connection

from db import Database
from db.judge import is_ledger_outage
from db.records import Delivery
from db.repositories.tenants import TenantRepository
from db.repositories.webhooks import HAS_UNCLAIMED, WebhookRepository
from workers.webhooks.notices import Notices
from workers.webhooks.running_time import RunningTime
from workers.webhooks.schedule import DeliveryAttempt, DeliveryVerdict

T = TypeVar("T")

OUTAGE_PAUSE_S: Final = 0.5


class Claimed(NamedTuple):
    """Deliveries now ours, the encrypted secrets of their tenants, and how far the turn has come."""

    deliveries: list[Delivery]
    secrets: Mapping[str, tuple[bytes, ...]]
    after: str
    """The tenant behind whom the next claim goes on; empty when all have been looked at."""


LEDGER_THREADS: Final = 5
"""As many as the ledger has connections by default: with more, a statement would only wait there."""


class Outbox:
    """Claims deliveries for one incarnation and writes down what came of them.

    Raises what `Database.run` raises. The lease has a thread and a connection of its own: no claim and no
    result may delay a renewal.
    """

    def __init__(self, database: Database, lease_database: Database, lease_s: float) -> None:
        self.incarnation: UUID = uuid4()
        self._database = database
        self._lease_database = lease_database
        self._lease_s = lease_s
        self._lease_thread = ThreadPoolExecutor(1, "webhook-lease")
        self._ledger_threads = ThreadPoolExecutor(LEDGER_THREADS, "webhook-ledger")
        self._found_nothing = False
        """Whether the last claim was in vain."""
        self.is_empty = False
        """Whether no webhook at all, due or not, waited for a relay at the last look."""
        self.notices = Notices(database, self._ledger_threads)

    async def renew(self) -> int:
        """Hold on to what is claimed; returns how many deliveries of relays that are gone came free."""

        def renew(connection: Connection) -> int:
            return WebhookRepository(connection).renew(self.incarnation, self._lease_s)

        freed = await asyncio.get_running_loop().run_in_executor(
            self._lease_thread, self._lease_database.run, renew
        )
        if freed:
            self.notices.tell()
        return freed

    async def retire(self) -> None:
        """Let the lease go; whatever is still claimed may be claimed by others at once."""

        def retire(connection: Connection) -> None:
            WebhookRepository(connection).retire(self.incarnation)

        await asyncio.get_running_loop().run_in_executor(self._lease_thread, self._lease_database.run, retire)

    async def claim(
        self,
        limit: int,
        after: str = "",
        *,
        per_host: int,
        per_tenant_and_host: int,
        exclude_tenants: Collection[str] = (),
        exclude_hosts: Sequence[str] = (),
        held: Sequence[UUID] | None = None,
    ) -> Claimed:
        """Claim what is due, tenants in turn; given `held`, what is ours and not among it is freed before.

        After a claim that found nothing, a cheap look comes before the next one.
        """
        self.is_empty = False
        if self._found_nothing and held is None and not await self._has_unclaimed():
            self.is_empty = True
            return Claimed([], {}, "")
        self._found_nothing = False

        def claim(connection: Connection) -> Claimed:
            webhooks = WebhookRepository(connection)
            if held is not None:
                webhooks.free_unheld(self.incarnation, held)
            turn = webhooks.tenants(after)
            due = [name for name in turn.due if name not in exclude_tenants]
            deliveries = webhooks.claim(
                self.incarnation, limit, due, exclude_hosts, per_host, per_tenant_and_host
            )
            names = {delivery.tenant for delivery in deliveries}
            secrets = TenantRepository(connection).webhook_secrets_of(names)
            is_full = len(deliveries) >= limit
            return Claimed(deliveries, secrets, max(names, key=due.index) if is_full else turn.after)

        claimed = await self._in_ledger(claim)
        self._found_nothing = not (claimed.deliveries or claimed.after)
        return claimed

    async def finish(
        self, delivery: Delivery, verdict: DeliveryVerdict, attempt: DeliveryAttempt, patience_s: float
    ) -> bool | None:
        """Write down a verdict, through an outage that ends in time; None if it did not.

        False if another claim holds the delivery now.
        """
        error = attempt.error.encode(errors="replace").decode().replace("\x00", "")

        def finish(connection: Connection) -> bool:
            webhooks = WebhookRepository(connection)
            if verdict.action == "delivered":
                return webhooks.delivered(delivery.id, delivery.claim, attempt.status or 200)
            if verdict.action == "dead":
                return webhooks.dead(delivery.id, delivery.claim, attempt.status, error)
            return webhooks.retry(delivery.id, delivery.claim, verdict.in_s, attempt.status, error)

        async with RunningTime() as time:
            while True:
                try:
                    return await self._in_ledger(finish)
                except Exception as error:
                    if not is_ledger_outage(error):
                        raise
                    if time.passed_s >= patience_s:
                        return None
                    await asyncio.sleep(OUTAGE_PAUSE_S)

    async def release(self, given_back: Sequence[tuple[Delivery, float]]) -> None:
        """Give claims back unused, each to be claimed again after so many seconds at the earliest."""
        claims = [(delivery.id, delivery.claim, in_s) for delivery, in_s in given_back]

        def release(connection: Connection) -> set[UUID]:
            return WebhookRepository(connection).release(claims)

        await self._in_ledger(release)

    async def _has_unclaimed(self) -> bool:
        return bool(
            await asyncio.get_running_loop().run_in_executor(
                self._ledger_threads, self._database.look, HAS_UNCLAIMED
            )
        )

    async def _in_ledger(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._ledger_threads, self._database.run, work
        )
