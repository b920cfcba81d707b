"""The bounds of the backlog, decided inside a real Redis."""

from __future__ import annotations

from typing import Any, cast

import pytest

from lorayard import Client
from lorayard.client.guard import STALE_AFTER_MS, IntakeEntry, SubmitGuard
from lorayard.contract.errors import QueueFull, QuotaExceeded
from tests.integration.client.tiny_leader import KEYS, connect

_DRIFTED = 10**12


def publish(url: str, age_ms: int = 0, **figures: float) -> None:
    """Publish admission figures as a leader does, `age_ms` ago."""
    seconds, microseconds = connect(url).time()
    published_ms = seconds * 1000 + microseconds // 1000 - age_ms
    defaults: dict[Any, Any] = {
        "ledger_room": 10_000,
        "max_entries": 10_000,
        "max_bytes": 10**9,
        "retry_after_s": 2.5,
    }
    defaults |= {**figures, "published_ms": published_ms}
    connect(url).hset(KEYS.admission, mapping=defaults)


def set_quota(url: str, tenant: str, quota: str) -> None:
    """Publish `max_queued_jobs room retry_after_s max_tokens_per_s` of a tenant as a leader does."""
    connect(url).hset(KEYS.quotas, tenant, quota)


def waiting(url: str) -> int:
    """Count the entries in the intake."""
    return sum(int(connect(url).xlen(stream)) for stream in KEYS.all_jobs)


def drain(url: str) -> None:
    """Take all entries out of the intake, as a leader does once they are in the ledger."""
    for stream in KEYS.all_jobs:
        connect(url).delete(stream)


def test_ledger_room_bounds_a_burst_between_two_publications(client: Client, pool_url: str) -> None:
    publish(pool_url, ledger_room=10)

    for _ in range(10):
        client.submit("hello")
    with pytest.raises(QueueFull, match="10 jobs wait for admission and the ledger has room for 10") as full:
        client.submit("hello")

    assert waiting(pool_url) == 10
    assert full.value.retry_after_s == 2.5


def test_ledger_room_bounds_a_burst_that_the_leader_admits_meanwhile(client: Client, pool_url: str) -> None:
    publish(pool_url, ledger_room=10)
    client.submit_many([{"prompt": "hello"}] * 6)
    drain(pool_url)

    with pytest.raises(QueueFull) as full:
        client.submit_many([{"prompt": "hello"}] * 6)

    assert len(full.value.accepted) == waiting(pool_url) == 4


def test_what_waits_at_a_publication_counts_against_its_room(client: Client, pool_url: str) -> None:
    client.submit_many([{"prompt": "hello"}] * 6)
    publish(pool_url, ledger_room=10)

    with pytest.raises(QueueFull):
        client.submit_many([{"prompt": "hello"}] * 6)

    assert waiting(pool_url) == 10


def test_the_next_publication_gives_room_again(client: Client, pool_url: str) -> None:
    publish(pool_url, age_ms=500, ledger_room=1)
    client.submit("hello")
    with pytest.raises(QueueFull):
        client.submit("hello")
    drain(pool_url)

    publish(pool_url, ledger_room=1)

    client.submit("hello")
    assert waiting(pool_url) == 1


def test_entries_of_all_classes_count_together(client: Client, pool_url: str) -> None:
    publish(pool_url, max_entries=3)
    client.submit_many({"prompt": "hello", "priority": priority} for priority in ("high", "normal", "low"))

    with pytest.raises(QueueFull, match="3 jobs wait to be admitted, at most 3 may"):
        client.submit("hello", priority="high")


def test_bytes_in_the_intake_are_bounded(client: Client, pool_url: str) -> None:
    publish(pool_url, max_bytes=5_000)
    client.submit("x" * 3_000)

    with pytest.raises(QueueFull, match="at most 5000 may wait"):
        client.submit("x" * 3_000)
    client.submit("short")


def test_the_byte_counter_is_the_size_of_the_bodies(client: Client, pool_url: str) -> None:
    client.submit_many([{"prompt": "x" * size} for size in (1, 100, 1_000)])

    entries: Any = connect(pool_url).xrange(KEYS.jobs("normal"))
    bodies = sum(len(fields[b"body"]) for _, fields in entries)
    assert int(cast("bytes", connect(pool_url).get(KEYS.intake_bytes))) == bodies


def test_a_drifted_byte_counter_heals_when_the_intake_is_empty(client: Client, pool_url: str) -> None:
    connect(pool_url).set(KEYS.intake_bytes, _DRIFTED)

    client.submit("hello")

    assert int(cast("bytes", connect(pool_url).get(KEYS.intake_bytes))) < 1_000


def test_stale_figures_leave_only_the_bounds_of_the_streams(client: Client, pool_url: str) -> None:
    publish(pool_url, age_ms=STALE_AFTER_MS + 1_000, ledger_room=0, max_entries=3)

    with pytest.raises(QueueFull, match="at most 3 may"):
        client.submit_many([{"prompt": "hello"}] * 5)

    assert waiting(pool_url) == 3


def test_a_partial_refusal_carries_the_first_handles(client: Client, pool_url: str) -> None:
    publish(pool_url, ledger_room=300)

    with pytest.raises(QueueFull) as full:
        client.submit_many({"prompt": f"job {number}"} for number in range(500))

    entries: Any = connect(pool_url).xrange(KEYS.jobs("normal"))
    assert len(full.value.accepted) == 300
    assert [
        str(handle.id).encode() in fields[b"body"]
        for handle, (_, fields) in zip(full.value.accepted, entries, strict=True)
    ] == [True] * 300


def test_nonsense_for_a_retry_time_becomes_the_default(client: Client, pool_url: str) -> None:
    publish(pool_url, max_entries=0, retry_after_s=float("nan"))

    with pytest.raises(QueueFull) as full:
        client.submit("hello")

    assert full.value.retry_after_s == 1.0


def test_a_flushed_script_cache_is_filled_again(pool_url: str) -> None:
    server = connect(pool_url)
    guard = SubmitGuard(server)
    entry = IntakeEntry("normal", b"{}")
    guard.append(KEYS, [entry])
    server.script_flush()

    assert guard.append(KEYS, [entry]).refusal is None
    assert server.xlen(KEYS.jobs("normal")) == 2


def test_a_tenants_quota_of_queued_jobs_refuses_its_jobs_alone(client: Client, pool_url: str) -> None:
    publish(pool_url)
    set_quota(pool_url, "acme", "5 3 7.5 -")

    with pytest.raises(QuotaExceeded, match="'acme' has 5 jobs queued, at most 5 may be") as full:
        client.submit_many([{"prompt": "hello", "tenant": "acme"}] * 6)
    client.submit("hello", tenant="other")

    assert (full.value.tenant, full.value.retry_after_s, len(full.value.accepted)) == ("acme", 7.5, 3)
    assert waiting(pool_url) == 4


def test_what_a_tenant_has_in_the_streams_at_a_publication_still_counts(
    client: Client, pool_url: str
) -> None:
    publish(pool_url, age_ms=500)
    set_quota(pool_url, "acme", "3 3 1 -")
    client.submit_many([{"prompt": "hello", "tenant": "acme"}] * 3)

    publish(pool_url)
    with pytest.raises(QuotaExceeded):
        client.submit("hello", tenant="acme")
    drain(pool_url)
    publish(pool_url, age_ms=-1)

    client.submit("hello", tenant="acme")


def test_a_tenants_tokens_per_second_may_be_used_a_minute_at_once_and_the_rest_is_a_debt(
    client: Client, pool_url: str
) -> None:
    publish(pool_url, age_ms=STALE_AFTER_MS + 1_000)  # quotas hold without a leader, too
    set_quota(pool_url, "acme", "- - 0 0.5")

    client.submit("hello", tenant="acme", max_tokens=20)
    client.submit("hello", tenant="acme", max_tokens=1_000)
    with pytest.raises(QuotaExceeded, match=r"'acme' has submitted its 0.5 tokens per second") as full:
        client.submit("hello", tenant="acme")
    client.submit("hello", tenant="other")

    # 60 s of 0.5 tokens, less 22 and 1,002; some of that has passed since.
    assert 1_900 < full.value.retry_after_s <= 1_990
    assert waiting(pool_url) == 3
