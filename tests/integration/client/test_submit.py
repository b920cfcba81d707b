"""How jobs get into the intake: in order, by many threads, to the pool that serves them."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lorayard import Client, JobSpec
from lorayard.client.directory import PoolDirectory
from lorayard.contract.errors import (
    AdapterQuarantined,
    InvalidJob,
    LorayardError,
    UnknownAdapter,
    UnknownPool,
)
from lorayard.contract.keys import POOLS_KEY, PoolKeys
from lorayard.contract.messages import JobEnvelope
from tests.integration.client.tiny_leader import KEYS, TinyLeader, connect, put_adapter, register_pool
from tests.polling import eventually

OTHER_POOL = "b" * 16


def prompts(url: str, priority: Any = "normal", pool: str = KEYS.pool) -> list[str | None]:
    """List the prompts in one intake stream, oldest first."""
    entries: Any = connect(url).xrange(PoolKeys(pool).jobs(priority))
    return [JobEnvelope.from_entry(fields).spec.prompt for _, fields in entries]


def test_jobs_arrive_in_the_order_of_submission(client: Client, pool_url: str) -> None:
    texts = [f"job {number}" for number in range(1_000)]

    client.submit_many({"prompt": text} for text in texts)

    assert prompts(pool_url) == texts


def test_jobs_go_to_the_stream_of_their_class(client: Client, pool_url: str) -> None:
    client.submit_many([{"prompt": "l", "priority": "low"}, {"prompt": "h", "priority": "high"}])

    assert (prompts(pool_url, "high"), prompts(pool_url, "low")) == (["h"], ["l"])


def test_blocks_are_cut_by_size_and_lose_no_job(client: Client, pool_url: str) -> None:
    register_pool(pool_url)
    jobs = [JobSpec(prompt="x" * 4_000, metadata={"number": number}) for number in range(600)]

    handles = client.submit_many(jobs)

    assert len(handles) == len(prompts(pool_url)) == 600


def test_no_jobs_are_no_handles(client: Client) -> None:
    assert client.submit_many([]) == []


@pytest.mark.usefixtures("never_asks")
def test_thirty_two_threads_share_one_client(client: Client, pool_url: str) -> None:
    def produce(number: int) -> list[str | None]:
        handles = [client.submit(f"{number}-{step}", adapter="upper") for step in range(20)]
        return [handle.result(30).output for handle in handles]

    with TinyLeader(pool_url) as leader, ThreadPoolExecutor(32) as threads:
        outputs = list(threads.map(produce, range(32)))

    assert outputs == [[f"{number}-{step}" for step in range(20)] for number in range(32)]
    assert len(leader.order) == 640
    # Not one reply was missed, not even one that came before its submission had returned.
    assert leader.lookups == []


def test_one_invalid_job_of_many_sends_nothing_and_names_its_place(client: Client, pool_url: str) -> None:
    with pytest.raises(InvalidJob, match=r"job 1 of the list is invalid: temperature=-1: .*give a number"):
        client.submit_many([{"prompt": "fine"}, {"prompt": "bad", "temperature": -1}])

    assert prompts(pool_url) == []


def test_a_prompt_beyond_the_pool_is_refused_with_its_size(client: Client, pool_url: str) -> None:
    with pytest.raises(InvalidJob, match=r"has 5000 bytes, the limit of tiny \(256 tokens\) is 4096"):
        client.submit("x" * 5_000)

    assert prompts(pool_url) == []


def test_an_unknown_adapter_is_refused_with_near_names(client: Client) -> None:
    with pytest.raises(UnknownAdapter, match=r"named 'uper': did you mean 'upper'\?.*lorayard adapters add"):
        client.submit("hello", adapter="uper")


def test_an_adapter_added_a_moment_ago_is_found(client: Client, pool_url: str) -> None:
    with pytest.raises(UnknownAdapter):
        client.submit("hello", adapter="new")

    put_adapter(pool_url, "new", "active")

    client.submit("hello", adapter="new")


def test_a_quarantined_adapter_is_refused_with_the_remedy(client: Client, pool_url: str) -> None:
    put_adapter(pool_url, "broken", "quarantined")

    with pytest.raises(AdapterQuarantined, match=r"'broken' is quarantined.*lorayard adapters add broken"):
        client.submit("hello", adapter="broken")


def test_a_removed_adapter_is_unknown(client: Client, pool_url: str) -> None:
    put_adapter(pool_url, "old", "removed")

    with pytest.raises(UnknownAdapter, match="named 'old'"):
        client.submit("hello", adapter="old")


def test_a_redis_without_pools_says_what_to_start(redis_url: str) -> None:
    with Client(redis_url) as client, pytest.raises(UnknownPool, match="start a scheduler"):
        client.submit("hello")


@pytest.mark.parametrize("is_cached", [False, True])
def test_what_a_flushed_redis_forgot_is_waited_for_until_its_leader_published_it(
    pool_url: str, *, is_cached: bool
) -> None:
    with Client(pool_url) as before, Client(pool_url) as new:
        client = before if is_cached else new
        before.submit("hello")
        with connect(pool_url) as redis:
            redis.flushdb()
        republish = threading.Timer(0.3, register_pool, (pool_url,), {"adapters": ("sql",)})
        republish.start()

        client.submit("hello", adapter="sql")
        republish.join()

    assert prompts(pool_url) == ["hello"]


def test_what_is_published_between_two_looks_is_found(pool_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_all_published = PoolDirectory._is_all_published

    def publish_and_look(directory: PoolDirectory) -> bool:
        register_pool(pool_url, adapters=("sql",))
        return is_all_published(directory)

    monkeypatch.setattr(PoolDirectory, "_is_all_published", publish_and_look)
    with Client(pool_url) as client:
        client.submit("select", adapter="sql")

    assert prompts(pool_url) == ["select"]


def test_an_adapter_chooses_among_pools(pool_url: str) -> None:
    register_pool(pool_url, OTHER_POOL, "other", ("sql",))

    with Client(pool_url) as client:
        client.submit("select", adapter="sql")

    assert (prompts(pool_url, pool=OTHER_POOL), prompts(pool_url)) == (["select"], [])


def test_the_base_of_several_pools_must_be_named(pool_url: str) -> None:
    register_pool(pool_url, OTHER_POOL, "other")

    with (
        Client(pool_url) as client,
        pytest.raises(UnknownPool, match=r"2 pools serve the base model.*model="),
    ):
        client.submit("hello")
    with Client(pool_url, model="other") as client:
        client.submit("hello")

    assert prompts(pool_url, pool=OTHER_POOL) == ["hello"]


def test_a_pool_that_has_no_leader_any_more_stands_back(pool_url: str) -> None:
    register_pool(pool_url, OTHER_POOL, "former")
    seconds, _ = connect(pool_url).time()
    for pool, age_s in ((OTHER_POOL, 3_600), (KEYS.pool, 0)):
        connect(pool_url).hset(PoolKeys(pool).admission, "published_ms", (seconds - age_s) * 1000)

    with Client(pool_url) as client:
        client.submit("hello")

    assert prompts(pool_url) == ["hello"]


def test_a_model_that_no_pool_serves_lists_those_there_are(pool_url: str) -> None:
    with (
        Client(pool_url, model="large") as client,
        pytest.raises(UnknownPool, match=r"'large'.*tiny \(a{16}\)"),
    ):
        client.submit("hello")


def test_a_pool_that_cannot_be_read_is_named_as_such(pool_url: str) -> None:
    connect(pool_url).hset(POOLS_KEY, OTHER_POOL, "{}")

    with Client(pool_url) as client, pytest.raises(UnknownPool, match="same version of lorayard"):
        client.submit("hello")


def test_a_closed_client_says_so(client: Client) -> None:
    handle = client.submit("hello")
    client.close()

    with pytest.raises(LorayardError, match="closed: make a new one"):
        client.submit("hello")
    with pytest.raises(LorayardError, match="closed: make a new one"):
        handle.result(1)


def test_what_was_heard_before_the_close_can_still_be_read(client: Client, pool_url: str) -> None:
    with TinyLeader(pool_url):
        handle = client.submit("hello")
        result = handle.result(10)
    client.close()

    assert (handle.done(), handle.result(), handle.status().state) == (True, result, result.state)


def test_a_close_ends_a_wait(client: Client) -> None:
    handle = client.submit("hello")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(handle.result)
        eventually(listening)
        client.close()

        with pytest.raises(LorayardError, match="closed: make a new one"):
            waiting.result(10)


def listening() -> list[threading.Thread]:
    """List the threads that clients of this process read replies with."""
    return [thread for thread in threading.enumerate() if thread.name == "lorayard-replies"]


def test_closing_leaves_no_reply_stream_and_no_thread(pool_url: str) -> None:
    with TinyLeader(pool_url), Client(pool_url) as client:
        client.submit("hello").result(10)
        assert len(listening()) == 1

    assert connect(pool_url).keys("lorayard:reply:*") == []
    assert listening() == []


def test_a_forgotten_client_leaves_no_thread(pool_url: str) -> None:
    client = Client(pool_url)
    handle = client.submit("hello")
    handle.done()
    assert len(listening()) == 1

    del client, handle

    eventually(lambda: not listening())


def test_only_receipts_that_exist_can_be_asked_for(client: Client, pool_url: str) -> None:
    with pytest.raises(InvalidJob, match="confirm='disk': give 'stream' or 'ledger'"):
        client.submit("hello", confirm="disk")  # type: ignore[arg-type]

    assert prompts(pool_url) == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_is_told_to_make_a_client_of_its_own(client: Client) -> None:
    client.submit("hello").done()

    child = os.fork()
    if child == 0:
        try:
            client.submit("hello")
        except LorayardError as error:
            os._exit(0 if "make one Client in each process" in str(error) else 1)
        finally:
            os._exit(2)
    eventually(lambda: _ended(child))

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.submit("hello")


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
