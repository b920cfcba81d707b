"""Messages show where a server is and never how to get in."""

from __future__ import annotations

import pytest

from lorayard.contract.wording import without_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:secret@host:6379/1", "redis://:***@host:6379/1"),
        ("rediss://user:se@cr:et@host/0", "rediss://user:***@host/0"),
        ("redis://user@host/0", "redis://user@host/0"),
        ("redis://host/0?password=secret&db=1", "redis://host/0?password=***&db=1"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock?password=***"),
        ("nonsense", "nonsense"),
        ("redis://:secret@[::1", "redis://:***@[::1"),
        ("redis://:sec#ret@h/0", "redis://***"),
        ("redis://:sec/ret@h/0", "redis://***"),
        ("redis://:sec?ret@h/0", "redis://***"),
        ("redis://u:secret", "redis://u:***"),
        ("redis://:secret@h:63x9/0", "redis://:***@h:***/0"),
        (":secret@h:6379", ":***@h:6379"),
        ("redis://h/0?pass%77ord=secret&ssl_password=secret", "redis://h/0?pass%77ord=***&ssl_password=***"),
        ("postgresql://u:secret@a:1,b:2/d?sslmode=require", "postgresql://u:***@a:1,b:2/d?sslmode=require"),
        ("localhost:6379", "localhost:6379"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
