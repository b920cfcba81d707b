"""Every test gets databases of its own from the run's servers."""

from __future__ import annotations

import psycopg
import pytest
import redis

from lorayard.local.postgres_server import plain_url

_SEEN: set[str] = set()


@pytest.mark.parametrize("round_number", [1, 2])
def test_a_test_finds_its_redis_database_empty(redis_url: str, round_number: int) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", round_number)

    assert redis_url not in _SEEN
    _SEEN.add(redis_url)


@pytest.mark.parametrize("round_number", [1, 2])
def test_a_test_finds_its_empty_postgres_database_without_tables(
    empty_database_url: str, round_number: int
) -> None:
    with psycopg.connect(plain_url(empty_database_url)) as connection:
        count = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
        connection.execute("CREATE TABLE left_over (id int)")

    assert count == (0,)
    assert empty_database_url not in _SEEN
    _SEEN.add(empty_database_url)


def test_a_test_finds_its_postgres_database_migrated(database_url: str) -> None:
    with psycopg.connect(plain_url(database_url)) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
