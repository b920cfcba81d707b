"""All keys of a pool share its hash slot, and no two of them are the same."""

from __future__ import annotations

from lorayard.contract.keys import PoolKeys, reply_key, worker_queue

KEYS = PoolKeys("p" * 16)


def every_key() -> list[str]:
    return [
        *KEYS.all_jobs, KEYS.intake_bytes, KEYS.admission, KEYS.catalogue, KEYS.control,
        KEYS.worker_events, KEYS.term, KEYS.commands("i"),
    ]  # fmt: skip


def test_the_keys_of_a_pool_carry_its_hash_tag() -> None:
    assert all(f":{{{KEYS.pool}}}:" in key for key in every_key())


def test_no_two_keys_are_the_same() -> None:
    assert len(set(every_key())) == len(every_key())


def test_the_intake_streams_come_most_urgent_first() -> None:
    assert [key.rpartition(":")[2] for key in KEYS.all_jobs] == ["high", "normal", "low"]


def test_clients_and_workers_have_names_of_their_own() -> None:
    assert reply_key("a") != reply_key("b")
    assert worker_queue("a") != worker_queue("b")
