"""What `AsyncClient` does in an event loop; what jobs go through is tested with `Client`, step by step."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI

from lorayard import AsyncClient, AsyncJobHandle, InvalidJob, JobState, LorayardError, StreamEvent
from lorayard.contract.errors import IdempotencyConflict, JobFailed, ResultTimeout, UnknownAdapter
from lorayard.contract.messages import TokenEntry
from tests.integration.client.test_stream import piece, write
from tests.integration.client.tiny_leader import TinyLeader, never_end
from tests.polling import eventually

WAIT_S = 30.0
THREADS_OF_ITS_OWN = 4 + 1 + 1
"""For exchanges, for replies, and for streams of tokens."""


def run(url: str, work: Callable[[AsyncClient], Awaitable[None]]) -> None:
    """Run a piece of asyncio work with a client."""

    async def main() -> None:
        async with AsyncClient(url) as client:
            await work(client)

    asyncio.run(main())


def threads_of_a_client() -> list[str]:
    names = ("lorayard-async", "lorayard-replies", "lorayard-tokens")
    return [one.name for one in threading.enumerate() if one.name.startswith(names)]


async def admitted(leader: TinyLeader, *handles: AsyncJobHandle) -> None:
    """Wait, beside the event loop, until the leader has jobs."""
    wanted = {handle.id for handle in handles}
    await asyncio.to_thread(eventually, lambda: wanted <= leader.envelopes.keys())


def test_a_thousand_jobs_are_awaited_at_once_with_a_few_threads_in_all(pool_url: str) -> None:
    most = 0

    async def work(client: AsyncClient) -> None:
        nonlocal most

        async def one(number: int) -> str | None:
            handle = await client.submit(f"job {number}", adapter="upper")
            return (await handle.result(WAIT_S)).output

        outputs = asyncio.gather(*(one(number) for number in range(1000)))
        while not outputs.done():
            most = max(most, len(threads_of_a_client()))
            await asyncio.sleep(0.01)
        assert await outputs == [f"JOB {number}" for number in range(1000)]

    with TinyLeader(pool_url):
        run(pool_url, work)

    assert 0 < most <= THREADS_OF_ITS_OWN
    eventually(lambda: not threads_of_a_client())


def test_jobs_of_a_list_are_submitted_in_order_confirmed_asked_for_and_cancelled(pool_url: str) -> None:
    async def work(client: AsyncClient) -> None:
        jobs = ({"prompt": f"job {number}"} for number in range(300))
        handles = await client.submit_many(jobs, confirm="ledger")
        assert leader.order == [handle.id for handle in handles]
        assert (await handles[0].status()).state is JobState.QUEUED
        assert not await handles[0].done()
        assert await client.job(str(handles[7].id)).cancel() is JobState.CANCELLED
        assert "upper" in await client.adapters()

    with TinyLeader(pool_url, never_end) as leader:
        run(pool_url, work)


def test_what_goes_wrong_is_raised_where_it_is_awaited(pool_url: str) -> None:
    async def work(client: AsyncClient) -> None:
        with pytest.raises(InvalidJob, match="there is no such field"):
            await client.submit("hello", temprature=1)  # type: ignore[call-arg]
        with pytest.raises(UnknownAdapter):
            await client.submit("hello", adapter="nobody")
        with pytest.raises(InvalidJob, match="not a valid job id"):
            client.job("12")
        first = await client.submit("one", idempotency_key="key", confirm="ledger")
        with pytest.raises(IdempotencyConflict):
            await client.submit("another", idempotency_key="key", confirm="ledger")
        with pytest.raises(ResultTimeout, match=r"has not ended within 0\.1 s"):
            await first.result(0.1)
        leader.end(first.id, JobState.CANCELLED)
        with pytest.raises(JobFailed):
            await first.result(WAIT_S)
        assert (await first.result(raise_on_failure=False)).state is JobState.CANCELLED
        with pytest.raises(TypeError, match=r"send its id, and call AsyncClient\.job"):
            pickle.dumps(first)

    with TinyLeader(pool_url, never_end) as leader:
        run(pool_url, work)


def test_whoever_stops_waiting_leaves_the_job_running_and_nothing_behind(pool_url: str) -> None:
    async def work(client: AsyncClient) -> None:
        handle = await client.submit("hello")
        tracked = client.job(handle.id)
        waits = [asyncio.create_task(one.result()) for one in (handle, handle, tracked)]
        await admitted(leader, handle)
        for task in waits[:2]:
            task.cancel()
        ends = await asyncio.gather(*waits[:2], return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 2
        leader.end(handle.id, output="went on")
        assert (await waits[2]).output == "went on"

    with TinyLeader(pool_url, never_end) as leader:
        run(pool_url, work)


def test_text_comes_while_the_jobs_run_to_each_of_many_readers(pool_url: str) -> None:
    async def text(events: AsyncIterator[StreamEvent]) -> str:
        pieces = ""
        async for event in events:
            pieces = event.text if event.is_restart else pieces + event.text
        return pieces

    async def work(client: AsyncClient) -> None:
        handles = await client.submit_many({"prompt": f"{number}", "stream": True} for number in range(50))
        await admitted(leader, *handles)
        twice = [handle.stream(WAIT_S) for handle in (*handles, *handles)]
        firsts = [asyncio.ensure_future(anext(events)) for events in twice]
        for handle in handles:
            await asyncio.to_thread(write, pool_url, handle.id, piece(1, 0, "once "))
        assert await asyncio.gather(*firsts) == [StreamEvent("once ", 1)] * 100
        rests = [asyncio.create_task(text(events)) for events in twice]
        for handle in handles:
            entries = piece(1, 5, "upon"), piece(2, 0, "twice "), TokenEntry(attempt=2, ended=True)
            await asyncio.to_thread(write, pool_url, handle.id, *entries)
            leader.end(handle.id, output="twice upon")
        assert await asyncio.gather(*rests) == ["twice upon"] * 100

    with TinyLeader(pool_url, never_end) as leader:
        run(pool_url, work)


def test_a_closed_client_says_so_to_those_who_wait_and_to_those_who_come(pool_url: str) -> None:
    async def main() -> None:
        client = AsyncClient(pool_url)
        handle = await client.submit("hello", stream=True)
        events = handle.stream()
        waits = [asyncio.ensure_future(handle.result()), asyncio.ensure_future(anext(events))]
        await admitted(leader, handle)
        await client.close()
        for ended in await asyncio.gather(*waits, return_exceptions=True):
            assert isinstance(ended, LorayardError)
        with pytest.raises(LorayardError, match="closed"):
            client.job(uuid4())

    with TinyLeader(pool_url, never_end) as leader:
        asyncio.run(main())


def test_a_web_application_submits_streams_and_answers(pool_url: str) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncClient(pool_url) as app.state.lorayard:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/jobs")
    async def submit(prompt: str) -> UUID:
        handle: AsyncJobHandle = await app.state.lorayard.submit(prompt, adapter="upper")
        return handle.id

    @app.get("/jobs/{job_id}")
    async def result(job_id: UUID) -> str | None:
        handle: AsyncJobHandle = app.state.lorayard.job(job_id)
        return (await handle.result(WAIT_S)).output

    async def main() -> None:
        async with (
            lifespan(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as http,
        ):
            ids = [(await http.post("/jobs", params={"prompt": f"p{n}"})).json() for n in range(3)]
            answers = await asyncio.gather(*(http.get(f"/jobs/{job_id}") for job_id in ids))
            assert [answer.json() for answer in answers] == ["P0", "P1", "P2"]

    with TinyLeader(pool_url):
        asyncio.run(main())
