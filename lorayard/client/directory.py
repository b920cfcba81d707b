"""Which pool serves a job: pools and adapters as their leaders publish them in Redis, cached for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from threading import Lock
from typing import TypeVar, cast

from pydantic import ValidationError
from redis import Redis

from lorayard.contract.errors import AdapterQuarantined, UnknownAdapter, UnknownPool
from lorayard.contract.keys import POOLS_KEY, PoolKeys
from lorayard.contract.messages import CatalogueEntry
from lorayard.contract.pool import PoolInfo

T = TypeVar("T")

CACHE_S = 5.0
GRACE_S = 1.0
"""A leader publishes its pool within a second of finding that Redis was flushed."""
KNOWN_GRACE_S = 10.0
"""For what has been there before: Redis was flushed, and its leader may have to be replaced first."""
_LOOK_EVERY_S = 0.05
LED_WITHIN_MS = 60_000
"""A leader publishes twice a second; a pool without a word for so long is a model of former times."""


class PoolDirectory:
    """Resolve adapter names to pools; raises redis-py's errors besides its own. Thread-safe."""

    def __init__(
        self,
        redis: Redis,
        model: str | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._redis = redis
        self._model = model
        self._clock = clock
        self._sleep = sleep
        self._seen: frozenset[str] = frozenset()
        self._lock = Lock()
        self._pools: tuple[PoolInfo, ...] = ()
        self._pools_until = float("-inf")
        self._entries: dict[tuple[str, str], tuple[CatalogueEntry, float]] = {}

    def pools(self) -> tuple[PoolInfo, ...]:
        """List the pools that a job of this client may go to; raises UnknownPool if there is none."""
        with self._lock:
            if self._clock() < self._pools_until:
                return self._pools
        pools = self._patiently(lambda: self._choose(self._read_pools()))
        with self._lock:
            self._pools, self._pools_until = pools, self._clock() + CACHE_S
            self._seen |= {pool.pool for pool in pools}
        return pools

    def resolve(self, adapter: str | None) -> PoolInfo:
        """Find the one pool that serves an adapter, or the base model if adapter is None.

        What a flushed Redis has forgotten is waited for, until its leader has published it again.
        """
        return self._patiently(lambda: self._resolve(adapter))

    def _resolve(self, adapter: str | None) -> PoolInfo:
        pools = self.pools()
        if adapter is None:
            return self._only(pools, "the base model")
        found = [pool for pool in pools if (entry := self._entry(pool.pool, adapter)) and _is_served(entry)]
        return self._only(tuple(found), f"adapter {adapter!r}") if found else self._refuse(pools, adapter)

    def adapters(self) -> list[str]:
        """Name the adapters that jobs may ask for now, read anew."""
        served: set[str] = set()
        for pool in self.pools():
            rows: Mapping[bytes, bytes] = self._redis.hgetall(PoolKeys(pool.pool).catalogue)  # type: ignore[assignment]
            entries = (CatalogueEntry.model_validate_json(row) for row in rows.values())
            served.update(entry.name for entry in entries if _is_served(entry))
        return sorted(served)

    def _patiently(self, find: Callable[[], T]) -> T:
        """Look again for a while if what is missing may not have been published yet."""
        until = self._clock() + (KNOWN_GRACE_S if self._seen else GRACE_S)
        while True:
            try:
                return find()
            except (UnknownPool, UnknownAdapter):
                if self._is_all_published():
                    return find()  # it may have been published after the look
                if self._clock() >= until:
                    raise
            self._sleep(_LOOK_EVERY_S)

    def _is_all_published(self) -> bool:
        """Whether Redis has pools, those seen before among them, each with its catalogue of adapters."""
        pools = {pool.pool for pool in self._read_pools()}
        return bool(pools) and self._seen <= pools and all(map(self._has_catalogue, pools))

    def _has_catalogue(self, pool: str) -> bool:
        return bool(self._redis.hexists(PoolKeys(pool).admission, "catalogue_version"))

    def _read_pools(self) -> tuple[PoolInfo, ...]:
        rows: Mapping[bytes, bytes] = self._redis.hgetall(POOLS_KEY)  # type: ignore[assignment]
        try:
            return tuple(PoolInfo.model_validate_json(row) for _, row in sorted(rows.items()))
        except ValidationError as error:
            raise UnknownPool(
                f"a pool in {POOLS_KEY} is described in a way this client cannot read: use the same version "
                "of lorayard in the client and in the scheduler"
            ) from error

    def _choose(self, pools: tuple[PoolInfo, ...]) -> tuple[PoolInfo, ...]:
        if not pools:
            raise UnknownPool(
                f"no pool is registered in {POOLS_KEY}: start a scheduler on this Redis (`lorayard up`)"
            )
        if self._model is None:
            return pools
        chosen = tuple(pool for pool in pools if self._model in (pool.pool, pool.model_name))
        if not chosen:
            raise UnknownPool(f"no pool serves the model {self._model!r}: there are {_listed(pools)}")
        return chosen

    def _only(self, pools: tuple[PoolInfo, ...], what: str) -> PoolInfo:
        """Take the one pool there is, or the one of several that has a leader at present."""
        if len(pools) == 1:
            return pools[0]
        led = tuple(pool for pool in pools if self._is_led(pool.pool))
        if len(led) == 1:
            return led[0]
        raise UnknownPool(
            f"{len(pools)} pools serve {what}: {_listed(pools)}; name one, Client(..., model=...) takes "
            "the model name or the pool id"
        )

    def _is_led(self, pool: str) -> bool:
        published = cast("bytes | None", self._redis.hget(PoolKeys(pool).admission, "published_ms"))
        seconds, microseconds = self._redis.time()
        return (
            bool(published) and seconds * 1000 + microseconds // 1000 - int(published or 0) <= LED_WITHIN_MS
        )

    def _entry(self, pool: str, adapter: str) -> CatalogueEntry | None:
        """Look an adapter up; only what was found is cached, so that a miss is always read anew."""
        with self._lock:
            cached = self._entries.get((pool, adapter))
        if cached is not None and self._clock() < cached[1]:
            return cached[0]
        row: bytes | None = self._redis.hget(PoolKeys(pool).catalogue, adapter)  # type: ignore[assignment]
        if row is None:
            return None
        entry = CatalogueEntry.model_validate_json(row)
        with self._lock:
            self._entries[pool, adapter] = (entry, self._clock() + (CACHE_S if _is_served(entry) else 0.0))
        return entry

    def _refuse(self, pools: tuple[PoolInfo, ...], adapter: str) -> PoolInfo:
        """Say why no pool serves the adapter."""
        for pool in pools:
            entry = self._entry(pool.pool, adapter)
            if entry is not None and entry.state == "quarantined":
                raise AdapterQuarantined(
                    f"adapter {adapter!r} is quarantined in pool {pool.pool}: its files ({entry.revision}) "
                    f"failed to load; repair them and run `lorayard adapters add {adapter} PATH`"
                )
        names = {name for pool in pools for name in self._names(pool.pool)}
        near = get_close_matches(adapter, sorted(names), n=3)
        hint = f"did you mean {', '.join(map(repr, near))}? " if near else ""
        raise UnknownAdapter(
            f"no pool serves an adapter named {adapter!r}: {hint}`lorayard adapters list` shows "
            f"the {len(names)} there are, `lorayard adapters add {adapter} PATH` adds it"
        )

    def _names(self, pool: str) -> list[str]:
        names: list[bytes] = self._redis.hkeys(PoolKeys(pool).catalogue)  # type: ignore[assignment]
        return [name.decode() for name in names]


def _is_served(entry: CatalogueEntry) -> bool:
    return entry.state == "active"


def _listed(pools: tuple[PoolInfo, ...]) -> str:
    return ", ".join(f"{pool.model_name} ({pool.pool})" for pool in pools)
