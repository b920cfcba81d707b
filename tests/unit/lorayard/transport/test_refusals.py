"""A refusal of Redis keeps the server's own sentence, and its code chooses the remedy."""

from __future__ import annotations

import pytest
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from lorayard.transport.refusals import has_no_group, remedy_of, sentence_of

SAID = [
    ("MISCONF Errors writing to the AOF file: No space left on device", "free space on the server's disk"),
    ("OOM command not allowed when used memory > 'maxmemory'", "raise maxmemory"),
    ("READONLY You can't write against a read only replica", "at the primary"),
    ("MASTERDOWN Link with MASTER is down", "at the primary"),
    ("NOREPLICAS Not enough good replicas to write", "min-replicas-to-write"),
    ("NOPERM this user has no permissions to run the 'xadd' command", "its ACL"),
    ("NOAUTH Authentication required", "the user and the password"),
    ("WRONGPASS invalid username-password pair or user is disabled", "the user and the password"),
    ("ERR invalid password", "the user and the password"),
    ("DENIED Redis is running in protected mode because", "protected mode"),
    ("MOVED 3999 127.0.0.1:6381", "a Redis cluster is not supported"),
    ("ASK 3999 127.0.0.1:6381", "a Redis cluster is not supported"),
    ("CROSSSLOT Keys in request don't hash to the same slot", "a Redis cluster is not supported"),
    ("CLUSTERDOWN Hash slot not served", "a Redis cluster is not supported"),
    ("LOADING Redis is loading the dataset in memory", "wait until it has loaded"),
    ("NOGROUP No such key 'x' or consumer group 'leader' in XREADGROUP", "makes its consumer groups again"),
    ("UNBLOCKED the stream key no longer exists", "makes its consumer groups again"),
    ("BUSY Redis is busy running a script. You can only call SCRIPT KILL", "wait for the script"),
    ("WRONGTYPE Operation against a key holding the wrong kind of value", "a database of its own"),
    ("ERR DB index is out of range", "correct the database number"),
    ("ERR max number of clients reached", "raise maxclients"),
    ("ERR unknown command 'XAUTOCLAIM'", "older than 6.2"),
    ("ERR Error running script (call to f_ab): @user_script:3: -OOM command not allowed", "raise maxmemory"),
    ("ERR Error running script (call to f_ab): @user_script:3: -READONLY You can't", "at the primary"),
    ("ERR something else", "check the server's version"),
]


@pytest.mark.parametrize(("line", "remedy"), SAID, ids=[line.partition(" ")[0] for line, _ in SAID])
def test_the_code_chooses_the_remedy_and_the_sentence_is_the_servers(line: str, remedy: str) -> None:
    error = BaseParser.parse_error(line)

    assert remedy in (remedy_of(error) or "")
    assert ";" not in (remedy_of(error) or ";")
    assert has_no_group(error) == ("groups" in remedy)
    if not line.startswith(("ERR", "MOVED", "ASK")):
        assert sentence_of(error) == line


@pytest.mark.parametrize(
    "error",
    [RedisTimeoutError("Timeout reading from socket"), RedisConnectionError("Error 111 BUSY connecting")],
)
def test_a_server_that_did_not_answer_has_refused_nothing(error: RedisConnectionError) -> None:
    assert remedy_of(error) is None
