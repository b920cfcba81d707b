"""Loads go to another process in order; its death, or its silence, costs one load and no step."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.polling import eventually
from tests.unit.workers.engine.lora.manager_fixtures import request_of, spec_of, stuck_request
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.loading import Loader, LoadResult
from workers.engine.lora.loading.child import AHEAD_NICENESS, may_take_back_niceness

MakeLoader = Callable[..., Loader]


@pytest.fixture
def make_loader() -> Iterator[MakeLoader]:
    made: list[Loader] = []

    def make(**limits: Any) -> Loader:
        made.append(Loader(spec_of(**limits)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def stuck(tmp_path: Path) -> LoRARequest:
    return stuck_request(tmp_path)


def _code(result: LoadResult) -> str | None:
    return None if result.error is None else result.error.code


def _pid(one: Loader) -> int:
    assert one._child is not None
    return one._child.pid


def _warm(one: Loader, folder: Path) -> None:
    one.submit(request_of(folder, 1000))
    assert one.wait().error is None


def test_loads_are_answered_in_order_from_another_process(make_loader: MakeLoader, tmp_path: Path) -> None:
    one = make_loader()
    requests = [request_of(tmp_path, number) for number in range(1, 6)]

    for request in requests:
        one.submit(request)
    results = [one.wait() for _ in requests]

    assert [result.request for result in results] == requests
    assert [result.weights and result.weights.digest for result in results] == [
        request.revision for request in requests
    ]
    assert one.poll() is None
    process = psutil.Process(_pid(one))
    assert process.nice() == psutil.Process().nice()
    assert process.ppid() == os.getpid()


def test_a_loader_gives_way_while_nobody_waits_for_its_loads(
    make_loader: MakeLoader, tmp_path: Path, stuck: LoRARequest
) -> None:
    one = make_loader()
    own = psutil.Process().nice()
    ahead = AHEAD_NICENESS if may_take_back_niceness() else own  # else it could never come back

    def after(load: Callable[[], None]) -> int:
        load()
        return psutil.Process(_pid(one)).nice()

    assert after(lambda: one.submit(stuck, is_ahead=True)) == ahead
    assert after(lambda: one.submit(request_of(tmp_path, 1), is_ahead=True)) == ahead
    assert after(lambda: one.hurry(request_of(tmp_path, 1))) == own
    one.close()
    assert after(lambda: one.submit(stuck)) == own


def test_poll_does_not_wait(make_loader: MakeLoader, tmp_path: Path) -> None:
    one = make_loader()
    _warm(one, tmp_path)

    os.kill(_pid(one), signal.SIGSTOP)
    one.submit(request_of(tmp_path, 1))
    assert one.poll() is None
    os.kill(_pid(one), signal.SIGCONT)

    assert eventually(one.poll).error is None


def test_a_queued_load_can_be_cancelled_and_one_handed_over_cannot(
    make_loader: MakeLoader, tmp_path: Path
) -> None:
    one = make_loader()
    requests = [request_of(tmp_path, number) for number in range(1, 5)]
    for request in requests:
        one.submit(request)

    assert one.cancel(requests[2])
    assert not one.cancel(requests[2])
    assert not one.cancel(requests[0])

    assert [one.wait().request for _ in range(3)] == [requests[0], requests[1], requests[3]]


def test_nothing_is_handed_over_while_held(make_loader: MakeLoader, tmp_path: Path) -> None:
    one = make_loader()
    one.hold(True)
    one.submit(request_of(tmp_path, 1))
    assert one.poll() is None
    assert not one._sent

    one.hold(False)

    assert one.wait().error is None


def test_a_killed_process_fails_the_load_under_way_only(
    make_loader: MakeLoader, tmp_path: Path, stuck: LoRARequest
) -> None:
    one = make_loader()
    _warm(one, tmp_path)
    others = [request_of(tmp_path, number) for number in range(1, 4)]
    pid = _pid(one)
    for request in (stuck, *others):
        one.submit(request)

    os.kill(pid, signal.SIGKILL)

    first = one.wait()
    assert first.request is stuck
    assert first.error is not None
    assert (first.error.code, first.error.retryable) == ("adapter_loader_died", True)
    assert f"exit code {-signal.SIGKILL}" in str(first.error)
    assert [(result.request, _code(result)) for result in (one.wait() for _ in others)] == [
        (request, None) for request in others
    ]
    assert _pid(one) != pid
    assert not psutil.pid_exists(pid)


def test_what_was_answered_before_the_death_is_not_lost(
    make_loader: MakeLoader, tmp_path: Path, stuck: LoRARequest
) -> None:
    one = make_loader()
    _warm(one, tmp_path)
    one.submit(request_of(tmp_path, 1))
    one.submit(stuck)
    select.select([one._child.channel], [], [])  # type: ignore[union-attr]

    os.kill(_pid(one), signal.SIGKILL)

    assert [_code(one.wait()) for _ in range(2)] == [None, "adapter_loader_died"]


def test_a_process_that_is_stuck_is_replaced(make_loader: MakeLoader, tmp_path: Path) -> None:
    one = make_loader()
    requests = [request_of(tmp_path, number) for number in (1, 2)]
    _warm(one, tmp_path)
    pid = _pid(one)
    os.kill(pid, signal.SIGSTOP)
    for request in requests:
        one.submit(request)
    one._waited_s = 3600.0  # an hour later

    stuck = one.wait()

    assert (stuck.request, _code(stuck)) == (requests[0], "adapter_load_timeout")
    assert not psutil.pid_exists(pid)


def test_a_process_is_not_blamed_for_an_hour_in_which_both_were_stopped(
    make_loader: MakeLoader, tmp_path: Path
) -> None:
    one = make_loader()
    _warm(one, tmp_path)
    pid = _pid(one)
    os.kill(pid, signal.SIGSTOP)
    one.submit(request_of(tmp_path, 1))
    one._looked_at -= 3600.0

    assert one.poll() is None
    os.kill(pid, signal.SIGCONT)
    assert _code(one.wait()) is None
    assert _pid(one) == pid


def test_a_process_that_cannot_be_started_is_told_to_each_load(tmp_path: Path) -> None:
    def fail() -> Any:
        raise OSError(12, "Cannot allocate memory")

    one = Loader(spec_of(), start=fail)
    one.submit(request_of(tmp_path, 1))

    error = one.wait().error
    assert error is not None
    assert (error.code, error.retryable) == ("adapter_loader_died", True)
    assert "cannot be started" in str(error)
    one.close()


def test_a_load_that_hangs_costs_its_own_time_and_nobody_the_process(
    make_loader: MakeLoader, tmp_path: Path, stuck: LoRARequest
) -> None:
    one = make_loader(timeout_s=3.0)
    one.submit(stuck)
    one.submit(request_of(tmp_path, 1))
    pid = _pid(one)

    assert [_code(one.wait()) for _ in range(2)] == ["adapter_load_timeout", None]
    assert _pid(one) == pid


def test_closing_drops_what_is_queued(make_loader: MakeLoader, stuck: LoRARequest, tmp_path: Path) -> None:
    one = make_loader()
    _warm(one, tmp_path)
    pid = _pid(one)
    one.submit(stuck)
    one.submit(request_of(tmp_path, 1))

    one.close()
    one.close()

    assert one.poll() is None
    assert not psutil.pid_exists(pid)
