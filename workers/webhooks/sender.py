"""Makes one HTTP try."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import httpcore
import httpx

from workers.webhooks.addresses import AddressBlocked, AddressPolicy, GuardedBackend
from workers.webhooks.schedule import DeliveryAttempt

MAX_ANSWER_BYTES = 2048

_FIXED_HEADERS = {
    "accept-encoding": "identity",
    "content-type": "application/json",
    "user-agent": "lorayard-webhooks/1",
}


class _GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's own transport on a pool whose connections are checked."""

    def __init__(self, policy: AddressPolicy) -> None:
        super().__init__()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(), network_backend=GuardedBackend(policy)
        )


class Sender:
    """An HTTP client that follows no redirect, trusts no proxy variable and reads little of the answer."""

    def __init__(self, policy: AddressPolicy, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            transport=_GuardedTransport(policy),
            timeout=httpx.Timeout(timeout_s, connect=min(5.0, timeout_s)),
            follow_redirects=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def post(self, url: str, body: str, headers: dict[str, str]) -> DeliveryAttempt:
        """Post a signed body; never raises for what the other side does."""
        try:
            # httpx's own limit is for each read: a host that drips bytes would hold the place for hours.
            async with asyncio.timeout(self._timeout_s):
                return await self._ask(url, body, _FIXED_HEADERS | headers)
        except AddressBlocked as error:
            return DeliveryAttempt(None, str(error), refused=True)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError) as error:
            # ValueError: a host that IDNA cannot encode, which httpx lets through.
            return DeliveryAttempt(None, f"callback_url {url!r} cannot be called: {error}", refused=True)
        except TimeoutError:
            return DeliveryAttempt(None, f"no whole answer within {self._timeout_s:g} s")
        except httpx.HTTPError as error:
            return DeliveryAttempt(
                None, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            )

    async def _ask(self, url: str, body: str, headers: dict[str, str]) -> DeliveryAttempt:
        async with self._client.stream("POST", url, content=body.encode(), headers=headers) as answer:
            return DeliveryAttempt(answer.status_code, await _complaint(answer), _retry_after_s(answer))


async def _complaint(answer: httpx.Response) -> str:
    """Read the start of an answer that is no 2xx, for whoever looks into it later."""
    if answer.is_success:
        return ""
    start = b""
    # Raw: a compressed answer is not worth the memory that it might unfold to.
    async for chunk in answer.aiter_raw():
        start += chunk
        if len(start) >= MAX_ANSWER_BYTES:
            break
    text = start[:MAX_ANSWER_BYTES].decode(errors="replace").replace("\x00", "")
    return f"HTTP {answer.status_code} {answer.reason_phrase}: {text}".rstrip(": ")


def _retry_after_s(answer: httpx.Response) -> float | None:
    """Read Retry-After, which is seconds or a date."""
    value = answer.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
