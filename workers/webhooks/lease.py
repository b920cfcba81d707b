"""Renews the lease that a relay's claims depend on, and knows whether it still holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from db.judge import explain, is_ledger_outage
from workers.webhooks.outbox import Outbox

LEASE_S: Final = 12.0
"""What a killed relay has claimed comes free after this and one renewal of another relay."""

RENEWALS_PER_LEASE: Final = 4
RETRIES_PER_LEASE: Final = 20

logger = structlog.get_logger(__name__)


class RelayLease:
    """Mutable: until when this incarnation's claims hold for certain, on its own clock."""

    def __init__(
        self, outbox: Outbox, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._outbox = outbox
        self._lease_s = lease_s
        self._clock = clock
        self._holds_until = float("-inf")
        self.num_lapses = 0
        """How often others may have claimed what was ours: it has to be claimed anew."""

    @property
    def holds(self) -> bool:
        """Whether nobody else can have claimed what is ours."""
        return self._clock() < self._holds_until

    async def keep(self) -> None:
        """Renew until cancelled; an outage is ridden out, whatever else fails is tried again as well."""
        while True:
            pause_s = self._lease_s / (RENEWALS_PER_LEASE if await self.renew() else RETRIES_PER_LEASE)
            await asyncio.sleep(pause_s)

    async def renew(self) -> bool:
        """Renew once; False if the ledger did not take it."""
        began_at, held = self._clock(), self.holds
        try:
            freed = await self._outbox.renew()
        except Exception as error:
            if is_ledger_outage(error):
                logger.warning("relay.lease_not_renewed", error=explain(error), holds=self.holds)
            else:
                logger.exception("relay.lease_not_renewed", error=explain(error), holds=self.holds)
            return False
        if not (held and self.holds):
            self.num_lapses += 1
        self._holds_until = began_at + self._lease_s
        if freed:
            logger.info("relay.freed", deliveries=freed)
        return True
