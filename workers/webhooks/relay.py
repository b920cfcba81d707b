"""The relay's loop: claim in a short transaction, send outside it, write down what came of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import structlog

from db.judge import explain, is_ledger_outage
from db.records import Delivery
from db.secrets import SecretBox
from lorayard.process.restarts import RestartBudget
from workers.webhooks.addresses import address_group
from workers.webhooks.body import render, signed_headers_of
from workers.webhooks.fair_queue import FairQueue, GivenBack, QueuedDelivery
from workers.webhooks.lease import LEASE_S, RelayLease
from workers.webhooks.lookup import Target, UncallableUrl, read_url
from workers.webhooks.outbox import OUTAGE_PAUSE_S, Outbox
from workers.webhooks.schedule import RETRY_DELAYS_S, DeliveryAttempt, judge
from workers.webhooks.sender import Sender

IDLE_POLL_S = 0.2
FINISH_PATIENCE_S = 90.0
"""So long a result is kept for a ledger that is away; then the webhook is sent once more."""

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """How the relay paces itself; `lease_s` is how long claims outlive the last renewal."""

    concurrency: int = 64
    max_per_host: int | None = None
    lease_s: float = LEASE_S
    delays_s: tuple[float, ...] = RETRY_DELAYS_S


class _Ready(NamedTuple):
    """A claimed delivery with what it takes to send it; without addresses until its host was looked up."""

    delivery: Delivery
    ciphertexts: tuple[bytes, ...]
    target: Target
    addresses: list[str] | None = None


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
        self._clock = clock
        self._restarts = RestartBudget(clock)
        self._lease = RelayLease(outbox, config.lease_s, clock)
        self._queue: FairQueue[_Ready] = FairQueue(config.concurrency, config.max_per_host)
        self._in_flight: dict[asyncio.Task[None], Delivery] = {}
        self._lingering: set[asyncio.Task[None]] = set()
        """Look-ups that nobody waits for any more and that hold their places."""
        self._given_back: list[GivenBack[_Ready]] = []
        self._after = ""
        """The tenant behind whom the next claim goes on."""
        self._num_lapses = 0
        self._is_leaving = False
        self._may_hold_unknown = False
        """Whether the ledger may think that we hold more than we know of."""

    async def run(self, stop: asyncio.Event, on_ready: Callable[[], None]) -> bool:
        """Deliver until `stop` is set, then let what is in flight finish; False if it gave up before.

        As with `ServiceThread`: an outage is ridden out, what one delivery caused ends that try of it, and
        anything else begins the loop anew, three times in a minute.
        """
        keeper = asyncio.gather(self._lease.keep(), self._outbox.notices.keep())
        gave_up = ready = False
        while not stop.is_set() and not gave_up:
            try:
                has_more = await self.claim_and_start()
                if not ready and self._lease.holds:
                    on_ready()
                    ready = True
            except Exception as error:
                self._may_hold_unknown = True
                if is_ledger_outage(error):
                    logger.warning("relay.ledger_unavailable", error=explain(error))
                else:
                    logger.exception("relay.failed", error=explain(error))
                    gave_up = not self._restarts.take()
                if not gave_up:
                    await _rest(stop, OUTAGE_PAUSE_S)
            else:
                if not has_more:
                    is_idle = self._outbox.is_empty and not self._in_flight and not any(self._queue)
                    await self._outbox.notices.pause(stop, IDLE_POLL_S, is_idle=is_idle)
        if gave_up:
            logger.critical("relay.broken", in_flight=len(self._in_flight))
        await self._leave(keeper)
        return not gave_up

    async def claim_and_start(self) -> bool:
        """Let more deliveries wait and fill the free places; False if there is nothing to do for a moment."""
        if not self._lease.holds and not await self._lease.renew():
            return False
        self._given_back += [*self._take_stale(), *self._queue.take_paused(self._clock())]
        await self._release()
        room = min(self._queue.room, self._config.concurrency)
        has_more = room > 0 and await self._claim(room)
        self._start_waiting()
        return has_more

    async def _claim(self, room: int) -> bool:
        """Claim once and give back what cannot wait here; tells whether there may be more."""
        held = (*self._in_flight.values(), *(queued.item.delivery for queued in self._queue))
        is_unsure, self._may_hold_unknown = self._may_hold_unknown, False
        claimed = await self._outbox.claim(
            room,
            self._after,
            per_host=self._queue.max_claimed_of_host,
            per_tenant_and_host=self._queue.max_claimed,
            exclude_tenants=self._queue.crowded_tenants(),
            exclude_hosts=self._queue.crowded_hosts(self._clock()),
            held=[delivery.id for delivery in held] if is_unsure else None,
        )
        self._after = claimed.after
        has_moved = False
        for delivery in claimed.deliveries:
            queued = self._queued(delivery, claimed.secrets[delivery.tenant])
            in_s = self._queue.offer(queued, self._clock()) if queued else 0.0
            if queued and in_s:
                self._given_back.append(GivenBack(queued, in_s))
            else:
                has_moved = True
        await self._release()
        return has_moved or bool(self._after)

    def _queued(self, delivery: Delivery, ciphertexts: tuple[bytes, ...]) -> QueuedDelivery[_Ready] | None:
        """Prepare a delivery for the queue; one that can never be called is settled at once."""
        try:
            target = read_url(delivery.url)
        except UncallableUrl as error:
            self._track(delivery, self._settle(delivery, DeliveryAttempt(None, str(error), refused=True)))
            return None
        ready = _Ready(delivery, ciphertexts, target)
        return QueuedDelivery(delivery.tenant, delivery.host, frozenset({target.domain}), ready)

    def _take_stale(self) -> list[GivenBack[_Ready]]:
        """Take out what waits if others may have claimed it meanwhile."""
        if self._lease.num_lapses == self._num_lapses:
            return []
        self._num_lapses = self._lease.num_lapses
        self._may_hold_unknown = True
        return self._queue.take_all()

    def _start_waiting(self) -> None:
        """Fill the free places; nothing is sent that another relay may have claimed."""
        while not self._is_leaving and self._lease.holds and self._lease.num_lapses == self._num_lapses:
            queued = self._queue.start(self._clock())
            if queued is None:
                return
            self._track(queued.item.delivery, self._deliver(queued))

    def _track(self, delivery: Delivery, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._in_flight[task] = delivery
        task.add_done_callback(partial(self._forget, delivery))

    def _forget(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        """Drop an ended delivery and fill its place; one whose end could not be written is claimed again."""
        del self._in_flight[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._may_hold_unknown = True
            logger.error(
                "webhook.broke",
                webhook_id=str(delivery.id),
                job_id=str(delivery.job_id),
                error=repr(error),
                exc_info=error,
            )
        self._start_waiting()

    async def _deliver(self, queued: QueuedDelivery[_Ready]) -> None:
        """Make one try in a place, unless the addresses turn out to be taken; then it waits for them."""
        attempt: DeliveryAttempt | None = None
        lookup: asyncio.Future[list[str]] | None = None
        try:
            if queued.item.addresses is None:
                lookup = self._sender.look_up(queued.item.target)
            attempt = await self._try_once(queued, lookup)
            if attempt is not None:
                await self._settle(queued.item.delivery, attempt)
        finally:
            ok = attempt.accepted if attempt is not None and not attempt.is_ours else None
            end = partial(self._queue.end, queued, ok=ok)
            if lookup is None or lookup.done():
                end(self._clock())
            else:
                self._linger(lookup, end)
        if attempt is None and (in_s := self._queue.offer(queued, self._clock())):
            self._given_back.append(GivenBack(queued, in_s))

    def _linger(self, lookup: asyncio.Future[list[str]], end: Callable[[float], None]) -> None:
        """Hold a place for as long as a look-up that nobody waits for holds its thread."""

        async def wait() -> None:
            await asyncio.gather(lookup, return_exceptions=True)
            end(self._clock())
            self._start_waiting()

        task = asyncio.create_task(wait())
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    async def _try_once(
        self, queued: QueuedDelivery[_Ready], lookup: asyncio.Future[list[str]] | None
    ) -> DeliveryAttempt | None:
        """Try it; what goes wrong here, and not at the other side, counts as a try as well."""
        delivery = queued.item.delivery
        try:
            return await self._try(queued, lookup)
        except Exception as error:
            logger.exception("webhook.not_tried", webhook_id=str(delivery.id), job_id=str(delivery.job_id))
            return DeliveryAttempt(
                None, f"the relay itself failed: {type(error).__name__}: {error}", is_ours=True
            )

    async def _try(
        self, queued: QueuedDelivery[_Ready], lookup: asyncio.Future[list[str]] | None
    ) -> DeliveryAttempt | None:
        delivery, ciphertexts, target, addresses = queued.item
        if lookup is not None:
            found = await self._sender.addresses_of(target, lookup)
            if isinstance(found, DeliveryAttempt):
                return found
            if not self._lease.holds:
                return None
            addresses = found
            queued.item = queued.item._replace(addresses=addresses)
            if not self._queue.reach(queued, map(address_group, addresses), self._clock()):
                return None
        body = render(delivery)
        headers = signed_headers_of(delivery, body, ciphertexts, self._secrets)
        if isinstance(headers, DeliveryAttempt):
            return headers
        return await self._sender.post(target, body, headers, addresses or [])

    async def _settle(self, delivery: Delivery, attempt: DeliveryAttempt) -> None:
        verdict = judge(attempt, delivery.tries, random.random(), self._config.delays_s)  # noqa: S311 - jitter
        settled = await self._outbox.finish(delivery, verdict, attempt, FINISH_PATIENCE_S)
        if settled is None:
            self._may_hold_unknown = True
        logger.info(
            f"webhook.{verdict.action}",
            webhook_id=str(delivery.id),
            job_id=str(delivery.job_id),
            tries=delivery.tries,
            status=attempt.status,
            settled=bool(settled),
        )

    async def _release(self) -> None:
        """Give back, together, what need not wait here."""
        given_back, self._given_back = self._given_back, []
        if given_back:
            await self._outbox.release([(queued.item.delivery, in_s) for queued, in_s in given_back])

    async def _leave(self, keeper: asyncio.Future[Any]) -> None:
        """Let what is in flight finish under the lease, then give back what waits and let the lease go."""
        self._is_leaving = True
        while self._in_flight:
            await asyncio.wait(self._in_flight)
        for task in (keeper, *self._lingering):
            task.cancel()
        await asyncio.gather(keeper, *self._lingering, return_exceptions=True)
        try:
            self._given_back += self._queue.take_all()
            await self._release()
            await self._outbox.retire()
        except Exception as error:
            # The lease runs out by itself.
            logger.exception("relay.not_retired", error=explain(error))


async def _rest(stop: asyncio.Event, seconds: float) -> None:
    """Wait, whatever is told, but not beyond a stop."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
