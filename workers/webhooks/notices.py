"""Hears of webhooks once the transactions that write them have committed, so that none need be looked for."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Final

import structlog

from db import Database
from db.connections import Listener
from db.errors import DatabaseUnavailable
from db.judge import explain
from db.repositories.endings import WEBHOOKS_CHANNEL

UNPROMPTED_S: Final = 2.0
"""So often an idle relay looks that would hear of any webhook."""

GATHER_S: Final = 0.01
"""After a notice so long is waited for more of them, so that a stream of webhooks is claimed in groups."""

RETRY_S: Final = 5.0

logger = structlog.get_logger(__name__)


class Notices:
    """Mutable: whether anything was told since the last pause; a relay that hears nothing looks oftener."""

    def __init__(self, database: Database, threads: Executor) -> None:
        self._database = database
        self._threads = threads
        self._is_told = asyncio.Event()
        self.hears = False
        """Whether a webhook that is written now will be told."""

    def tell(self) -> None:
        """End the wait: there may be something to claim."""
        self._is_told.set()

    async def pause(self, stop: asyncio.Event, seconds: float, *, is_idle: bool) -> None:
        """Wait until something is told, but not beyond a stop; an idle relay that hears waits for longer."""
        limit_s = UNPROMPTED_S if is_idle and self.hears else seconds
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, self._is_told)]
        await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._is_told.is_set() and not stop.is_set():
            await asyncio.sleep(GATHER_S)
            self._is_told.clear()  # what is told from now on may come too late for the look that follows

    async def keep(self) -> None:
        """Listen until cancelled, anew after each outage; not at all if a pooler answers for Postgres."""
        while True:
            try:
                listener = await self._listen()
            except Exception as error:  # noqa: BLE001 - looking is always possible
                logger.warning("relay.not_listening", error=explain(error))
            else:
                if listener is None:
                    logger.info(
                        "relay.looks", reason="a pooler stands before Postgres, and passes on no notices"
                    )
                    return
                await self._hear(listener)
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> Listener | None:
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(self._threads, self._database.listen, WEBHOOKS_CHANNEL)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            if listener := await opening:
                listener.close()
            raise

    async def _hear(self, listener: Listener) -> None:
        """Return once the session is lost."""
        loop, lost = asyncio.get_running_loop(), asyncio.Event()

        def take() -> None:
            try:
                if listener.take():
                    self.tell()
            except DatabaseUnavailable as error:
                logger.warning("relay.not_listening", error=explain(error))
                loop.remove_reader(listener)
                lost.set()

        loop.add_reader(listener, take)
        self.hears = True
        self.tell()  # of what was written before
        try:
            await lost.wait()
        finally:
            self.hears = False
            loop.remove_reader(listener)
            listener.close()
