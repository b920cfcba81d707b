"""The relay's side of the ledger, each call one short transaction off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from db import Database
from db.records import Delivery
from db.repositories.tenants import TenantRepository
from db.repositories.webhooks import WebhookRepository
from workers.webhooks.schedule import DeliveryAttempt, DeliveryVerdict


class Claimed(NamedTuple):
    """Deliveries now ours for a while, with the encrypted secrets of their tenants."""

    deliveries: list[Delivery]
    secrets: Mapping[str, tuple[bytes, ...]]


class Outbox:
    """Claims deliveries and writes down what came of them. Raises what `Database.run` raises."""

    def __init__(self, database: Database, lease_s: float) -> None:
        self._database = database
        self._lease_s = lease_s

    async def claim(self, limit: int, exclude_hosts: Sequence[str], per_host: int) -> Claimed:
        """Claim what is due."""

        def claim(connection: Connection) -> Claimed:
            webhooks = WebhookRepository(connection)
            deliveries = webhooks.claim(limit, self._lease_s, exclude_hosts, per_host)
            tenants = TenantRepository(connection)
            names = {delivery.tenant for delivery in deliveries}
            return Claimed(deliveries, {name: tenants.webhook_secrets(name) for name in names})

        return await asyncio.to_thread(self._database.run, claim)

    async def finish(self, delivery: Delivery, verdict: DeliveryVerdict, attempt: DeliveryAttempt) -> bool:
        """Write down a verdict; False if another claim holds the delivery now."""

        def finish(connection: Connection) -> bool:
            webhooks = WebhookRepository(connection)
            if verdict.action == "delivered":
                return webhooks.delivered(delivery.id, delivery.claim, attempt.status or 200)
            if verdict.action == "dead":
                return webhooks.dead(delivery.id, delivery.claim, attempt.status, attempt.error)
            return webhooks.retry(delivery.id, delivery.claim, verdict.in_s, attempt.status, attempt.error)

        return await asyncio.to_thread(self._database.run, finish)

    async def release(self, delivery: Delivery, in_s: float) -> bool:
        """Give a claim back unused."""

        def release(connection: Connection) -> bool:
            return WebhookRepository(connection).release(delivery.id, delivery.claim, in_s)

        return await asyncio.to_thread(self._database.run, release)
