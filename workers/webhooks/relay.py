"""The relay's loop: claim in a short transaction, send outside it, write down what came of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import structlog

from db.errors import SecretUnreadable
from db.judge import explain, is_ledger_outage
from db.records import Delivery
from db.secrets import SecretBox
from lorayard.process.restarts import RestartBudget
from lorayard.webhooks import signed_headers
from workers.webhooks.body import render
from workers.webhooks.hosts import Hosts
from workers.webhooks.outbox import Outbox
from workers.webhooks.schedule import RETRY_DELAYS_S, DeliveryAttempt, judge
from workers.webhooks.sender import Sender

IDLE_POLL_S = 0.2
OUTAGE_PAUSE_S = 0.5

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """How the relay paces itself; `lease_s` must exceed a send and its waiting."""

    concurrency: int = 64
    per_host: int = 8
    lease_s: float = 90.0
    delays_s: tuple[float, ...] = RETRY_DELAYS_S


class Relay:
    """Delivers due webhooks until it is told to stop; several may run side by side."""

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        secrets: SecretBox,
        config: RelayConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._secrets = secrets
        self._config = config
        self._restarts = RestartBudget(clock)
        self._hosts = Hosts(config.per_host)
        self._in_flight: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event, on_ready: Callable[[], None]) -> bool:
        """Deliver until `stop` is set, then let what is in flight finish; False if it gave up before.

        As with `ServiceThread`: an outage is ridden out, what one delivery caused ends that try of it, and
        anything else begins the loop anew, three times in a minute.
        """
        gave_up = ready = False
        while not stop.is_set() and not gave_up:
            try:
                pause_s = 0.0 if await self.claim_and_start() else IDLE_POLL_S
                if not ready:
                    on_ready()
                    ready = True
            except Exception as error:
                pause_s = OUTAGE_PAUSE_S
                if is_ledger_outage(error):
                    logger.warning("relay.ledger_unavailable", error=explain(error))
                else:
                    logger.exception("relay.failed", error=explain(error))
                    gave_up = not self._restarts.take()
            if pause_s and not gave_up:
                await _pause(stop, pause_s)
        if gave_up:
            logger.critical("relay.broken", in_flight=len(self._in_flight))
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        return not gave_up

    async def claim_and_start(self) -> int:
        """Fill the free places; waits for one if there is none."""
        if len(self._in_flight) >= self._config.concurrency:
            await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
        free = self._config.concurrency - len(self._in_flight)
        claimed = await self._outbox.claim(
            free, self._hosts.unavailable(time.monotonic()), self._config.per_host
        )
        for delivery in claimed.deliveries:
            self._hosts.begin(delivery.host)
            task = asyncio.create_task(self._deliver(delivery, claimed.secrets[delivery.tenant]))
            self._in_flight.add(task)
            task.add_done_callback(partial(self._forget, delivery))
        return len(claimed.deliveries)

    def _forget(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        """Drop an ended delivery; one whose end could not be written is claimed again when its claim ends."""
        self._in_flight.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(
                "webhook.broke",
                webhook_id=str(delivery.id),
                job_id=str(delivery.job_id),
                error=repr(error),
                exc_info=error,
            )

    async def _deliver(self, delivery: Delivery, ciphertexts: tuple[bytes, ...]) -> None:
        try:
            async with self._hosts.places(delivery.host):
                pause_s = self._hosts.pause_left_s(delivery.host, time.monotonic())
                if pause_s > 0:
                    await self._persist(lambda: self._outbox.release(delivery, pause_s))
                    return
                attempt = await self._try_once(delivery, ciphertexts)
            await self._settle(delivery, attempt)
        finally:
            self._hosts.end(delivery.host)

    async def _try_once(self, delivery: Delivery, ciphertexts: tuple[bytes, ...]) -> DeliveryAttempt:
        """Try it; what goes wrong here, and not at the other side, counts as a try as well."""
        try:
            return await self._try(delivery, ciphertexts)
        except Exception as error:
            logger.exception("webhook.not_tried", webhook_id=str(delivery.id), job_id=str(delivery.job_id))
            return DeliveryAttempt(None, f"the relay itself failed: {type(error).__name__}: {error}")

    async def _try(self, delivery: Delivery, ciphertexts: tuple[bytes, ...]) -> DeliveryAttempt:
        if not ciphertexts:
            remedy = f"`lorayard webhooks secret {delivery.tenant}`, then `lorayard webhooks replay`"
            return DeliveryAttempt(
                None, f"tenant {delivery.tenant!r} has no webhook secret: {remedy}", refused=True
            )
        try:
            secrets = [self._secrets.decrypt(ciphertext) for ciphertext in ciphertexts]
        except SecretUnreadable as error:
            return DeliveryAttempt(None, str(error))
        body = render(delivery)
        headers = signed_headers(str(delivery.id), datetime.now(UTC), body, secrets)
        attempt = await self._sender.post(delivery.url, body, headers)
        if not attempt.refused:
            self._hosts.record(delivery.host, ok=attempt.accepted, now=time.monotonic())
        return attempt

    async def _settle(self, delivery: Delivery, attempt: DeliveryAttempt) -> None:
        verdict = judge(attempt, delivery.tries, random.random(), self._config.delays_s)  # noqa: S311 - jitter
        settled = await self._persist(lambda: self._outbox.finish(delivery, verdict, attempt))
        logger.info(
            f"webhook.{verdict.action}",
            webhook_id=str(delivery.id),
            job_id=str(delivery.job_id),
            tries=delivery.tries,
            status=attempt.status,
            settled=settled,
        )

    async def _persist(self, write: Callable[[], Awaitable[bool]]) -> bool:
        """Write through an outage of the ledger, as long as the claim lasts; then it is sent once more."""
        deadline = time.monotonic() + self._config.lease_s
        while True:
            try:
                return await write()
            except Exception as error:
                if not is_ledger_outage(error):
                    raise
                if time.monotonic() >= deadline:
                    return False
                await asyncio.sleep(OUTAGE_PAUSE_S)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, but not beyond a stop."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
