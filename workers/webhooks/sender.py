"""Makes one HTTP try."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

import httpx
import structlog

from workers.webhooks.addresses import AddressBlocked, AddressPolicy
from workers.webhooks.connections import ADDRESSES, GuardedTransport
from workers.webhooks.lookup import MAX_ADDRESSES, Lookups, Target
from workers.webhooks.running_time import RunningTime
from workers.webhooks.schedule import DeliveryAttempt

MAX_ANSWER_BYTES: Final = 2048
CONNECT_TIMEOUT_S: Final = 5.0
"""For one address, and for a look-up."""

STOOD_STILL_S: Final = 5.0
"""What fails without an answer says nothing of the receiver if this process stood still for so long during
the try: the other side may have given us up."""

_FIXED_HEADERS = {
    "accept": "*/*",
    "accept-encoding": "identity",
    "content-type": "application/json",
    "user-agent": "lorayard-webhooks/1",
}

_HTTP_DATES = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")
"""The three forms of RFC 9110; the calendar's months and days are English as long as nobody sets a locale."""

logger = structlog.get_logger(__name__)


class Sender:
    """An HTTP client that keeps no cookie, follows no redirect, trusts no proxy variable and reads little."""

    def __init__(
        self,
        policy: AddressPolicy,
        timeout_s: float,
        num_connections: int = 64,
        resolve: Callable[..., list[Any]] | None = None,
    ) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._connect_timeout_s = min(CONNECT_TIMEOUT_S, timeout_s)
        self._transport = GuardedTransport(policy, num_connections)
        self._lookups = Lookups(resolve) if resolve else Lookups()

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    def look_up(self, target: Target) -> asyncio.Future[list[str]]:
        """Begin to look the host of a target up; whoever no longer waits counts it until it is done."""
        return self._lookups.start(target.url.raw_host.decode("ascii"), target.port)

    async def addresses_of(
        self, target: Target, lookup: asyncio.Future[list[str]]
    ) -> list[str] | DeliveryAttempt:
        """Wait for a look-up: the addresses to try, or the attempt that has failed already."""
        time = RunningTime(self._connect_timeout_s)
        failed = f"host {target.host!r} does not resolve"
        try:
            async with time:
                await asyncio.wait({lookup})
            addresses = lookup.result()
            self._policy.check(target.host, addresses)
        except TimeoutError:
            return _judged(DeliveryAttempt(None, f"{failed} within {self._connect_timeout_s:g} s"), time)
        except OSError as error:
            return _judged(DeliveryAttempt(None, f"{failed}: {error}"), time)
        except (AddressBlocked, ValueError) as error:
            return DeliveryAttempt(None, str(error), refused=True)
        return addresses[:MAX_ADDRESSES]

    async def post(
        self, target: Target, body: str, headers: dict[str, str], addresses: Sequence[str]
    ) -> DeliveryAttempt:
        """Post a signed body; never raises for what the other side does."""
        request = httpx.Request(
            "POST",
            target.url,
            content=body.encode(),
            headers=_FIXED_HEADERS | target.authorization | headers,
            # The others are for each read or write: a host that drips bytes would hold the place for hours.
            extensions={"timeout": {"connect": self._connect_timeout_s}},
        )
        ADDRESSES.set(addresses)
        time = RunningTime(self._timeout_s)
        return _judged(await self._post(request, target.host, time), time)

    async def _post(self, request: httpx.Request, host: str, time: RunningTime) -> DeliveryAttempt:
        try:
            async with time:
                return await self._ask(request)
        except AddressBlocked as error:
            return DeliveryAttempt(None, str(error), refused=True)
        except TimeoutError:
            return DeliveryAttempt(None, f"no whole answer within {self._timeout_s:g} s")
        except (httpx.HTTPError, OSError) as error:
            return DeliveryAttempt(None, _worded(error))
        except Exception as error:
            # Whatever a library makes of an answer that nobody foresaw: the receiver's, and worth a look.
            logger.exception("webhook.odd_answer", host=host)
            return DeliveryAttempt(None, _worded(error))

    async def _ask(self, request: httpx.Request) -> DeliveryAttempt:
        answer = await self._transport.handle_async_request(request)
        try:
            return DeliveryAttempt(answer.status_code, await _complaint(answer), _retry_after_s(answer))
        finally:
            await answer.aclose()


def _judged(attempt: DeliveryAttempt, time: RunningTime) -> DeliveryAttempt:
    """Take upon us what failed without an answer while this process stood still; it is soon tried again."""
    if attempt.status is not None or attempt.refused or time.stood_still_s < STOOD_STILL_S:
        return attempt
    error = f"the relay stood still for {time.stood_still_s:.1f} s: {attempt.error}"
    return replace(attempt, error=error, is_ours=True, is_soon=True)


def _worded(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def _complaint(answer: httpx.Response) -> str:
    """Read the start of an answer that is no 2xx, for whoever looks into it later."""
    if answer.is_success:
        return ""
    start = b""
    # Raw: a compressed answer is not worth what it might unfold to. One with a broken end is an answer still.
    with suppress(httpx.HTTPError):
        async for chunk in answer.aiter_raw():
            start += chunk
            if len(start) >= MAX_ANSWER_BYTES:
                break
    text = start[:MAX_ANSWER_BYTES].decode(errors="replace").replace("\x00", "")
    return f"HTTP {answer.status_code} {answer.reason_phrase}: {text}".rstrip(": ")


def _retry_after_s(answer: httpx.Response) -> float | None:
    """Read Retry-After, which is seconds or a date; None if it is neither, or several."""
    value = answer.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    for form in _HTTP_DATES:
        try:
            at = datetime.strptime(value, form).replace(tzinfo=UTC)
        except ValueError:
            continue
        return max(0.0, (at - datetime.now(UTC)).total_seconds())
    return None
