"""Replies may be lost, Redis may go away: a waiting client only learns later."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from lorayard import Client, JobState, as_completed
from lorayard.contract.errors import ResultTimeout, UnknownJob
from lorayard.contract.keys import reply_key
from tests.integration.client.tiny_leader import KEYS, TinyLeader, connect, never_end, register_pool
from tests.polling import eventually

if TYPE_CHECKING:
    from lorayard.local import RedisServer

_ASK_FROM_ANOTHER_PROCESS = """
import sys
from lorayard import Client
with Client(sys.argv[1]) as client:
    handle = client.job(sys.argv[2])
    print(handle.status().state, handle.result(10).output)
"""


def test_a_job_is_found_from_another_process(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url):
        handle = client.submit("hello")
        handle.result(10)
        arguments = [sys.executable, "-c", _ASK_FROM_ANOTHER_PROCESS, pool_url, str(handle.id)]
        asked = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)

    assert (asked.stdout.split(), asked.returncode) == (["succeeded", "HELLO"], 0), asked.stderr


def test_polling_a_job_of_another_process_ends(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url), Client(pool_url) as other:
        handle = other.job(client.submit("hello").id)

        assert eventually(handle.done)
        assert handle.result(0).output == "HELLO"


def test_a_lost_reply_is_asked_for(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, announces=False) as leader:
        result = client.submit("hello").result(10)

    assert result.output == "HELLO"
    assert leader.lookups[0] == result.job_id


@pytest.mark.usefixtures("never_asks")
def test_replies_that_come_need_no_questions(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url) as leader:
        handles = client.submit_many([{"prompt": f"{number}"} for number in range(300)])
        assert len(list(as_completed(handles, 30))) == 300

    assert leader.lookups == []


def test_many_lost_replies_are_asked_for_in_turn(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, announces=False):
        handles = client.submit_many([{"prompt": f"{number}"} for number in range(200)])
        outputs = {handle.result(0).output for handle in as_completed(handles, 30)}

    assert outputs == {f"{number}" for number in range(200)}


def test_a_trimmed_reply_stream_is_noticed(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url) as leader:
        handles = client.submit_many([{"prompt": f"{number}"} for number in range(2_500)])
        eventually(lambda: len(leader.results) == 2_500, 120)
        client_id = leader.envelopes[handles[0].id].reply_to
        connect(pool_url).xtrim(reply_key(str(client_id)), maxlen=2_000, approximate=False)

        assert len(list(as_completed(handles, 60))) == 2_500
    assert set(leader.lookups) >= {handle.id for handle in handles[:400]}


def test_a_redis_that_restarts_only_delays_the_result(own_redis: RedisServer) -> None:
    register_pool(own_redis.url)
    with TinyLeader(own_redis.url, never_end) as leader, Client(own_redis.url) as client:
        handle = client.submit("hello")
        eventually(lambda: handle.id in leader.envelopes)
        outputs: list[str | None] = []
        waiter = threading.Thread(target=lambda: outputs.append(handle.result(60).output))
        waiter.start()

        own_redis.restart()
        leader.end(handle.id)
        waiter.join(30)

    assert outputs == ["ended"]


def test_a_redis_that_lost_everything_only_delays_the_result(own_redis: RedisServer) -> None:
    register_pool(own_redis.url)
    with TinyLeader(own_redis.url, never_end, announces=False) as leader, Client(own_redis.url) as client:
        first, second = client.submit("first"), client.submit("second")
        eventually(lambda: second.id in leader.envelopes)
        leader.end(first.id)
        assert first.result(10).output == "ended"

        own_redis.kill()
        connect_when_back = _restart_empty(own_redis)
        leader.results[second.id] = leader.results[first.id].model_copy(update={"job_id": second.id})

        assert second.result(30).output == "ended"
        assert connect_when_back.ping()


def _restart_empty(server: RedisServer) -> Any:
    server.start()
    client = connect(server.url)
    client.flushall()
    register_pool(server.url)
    return client


def test_a_job_that_redis_lost_before_admission_is_reported(client: Client, pool_url: str) -> None:
    handle = client.submit("hello")
    connect(pool_url).delete(KEYS.jobs("normal"))

    with TinyLeader(pool_url), pytest.raises(UnknownJob, match="lost by Redis before it was admitted"):
        handle.result(10)


def test_a_job_that_still_waits_in_the_intake_is_not_lost(client: Client, pool_url: str) -> None:
    handle = client.submit("hello")
    server = connect(pool_url)
    entries: Any = server.xrange(KEYS.jobs("normal"))
    server.rename(KEYS.jobs("normal"), "aside")

    with TinyLeader(pool_url) as leader:
        assert handle.status().state is JobState.QUEUED
        server.rename("aside", KEYS.jobs("normal"))
        assert handle.result(10).output == "HELLO"

    assert len(entries) == len(leader.order) == 1


def test_a_lost_confirmation_of_a_key_delays_the_result_only(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, announces=False) as leader:
        result = client.submit("hello", idempotency_key="k").result(20)

    assert result.output == "HELLO"
    assert len(leader.lookups) >= 2


def test_a_submission_whose_confirmation_was_lost_cancels_nothing(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end, announces=False) as leader:
        handle = client.submit("hello", idempotency_key="k")
        with pytest.raises(ResultTimeout, match="is not cancelled: Redis lost what the ledger said"):
            handle.cancel()
        assert leader.results == {}

        assert client.job(handle.id).cancel() is JobState.CANCELLED


def test_unreadable_replies_are_passed_over(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url, never_end) as leader:
        handle = client.submit("hello")
        eventually(lambda: handle.id in leader.envelopes)
        stream = reply_key(str(leader.envelopes[handle.id].reply_to))
        for fields in ({"body": b"{"}, {"other": b"x"}, {"body": b'{"v":2,"job_id":1}'}):
            connect(pool_url).xadd(stream, fields)  # type: ignore[arg-type]
        leader.end(handle.id)

        assert handle.result(10).output == "ended"
