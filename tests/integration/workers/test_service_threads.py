"""Each service thread of a real worker fails: once, and service goes on; forever, and the worker drains."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from db.repositories.leases import LeaseRepository
from tests.integration.workers.questions import questions
from tests.integration.workers.scripted_leader import ENDLESS, ScriptedLeader
from tests.integration.workers.worker_process import WorkerProcess
from tests.polling import eventually

PROGRAM = Path(__file__).with_name("failing_worker.py")
SERVICES = (
    "arrivals",
    "event-publisher",
    "commands",
    "committer",
    "drain",
    "engine-pump",
    "engine-watch",
    "feeder",
    "lease",
)
OBSERVERS = ("token-writer",)
EXIT_S = 60.0
StartWorker = Callable[..., WorkerProcess]


class FailingWorker:
    """A worker process and the file that makes its threads fail."""

    def __init__(self, worker: WorkerProcess, folder: Path) -> None:
        self.worker = worker
        self._order = folder / "order"
        worker.command = [sys.executable, str(PROGRAM), str(self._order)]

    def fail(self, thread: str, how: str) -> None:
        """Have a thread fail from its next step on."""
        partial = self._order.with_name("order.partial")
        partial.write_text(f"{thread} {how}")
        partial.rename(self._order)

    def has_logged(self, event: str, thread: str) -> bool:
        """Whether a thread's fate was logged."""
        return any(f'"{event}"' in line and f'"{thread}"' in line for line in self.worker.log_lines())


@pytest.fixture(scope="module")
def failing(start_worker: StartWorker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FailingWorker]:
    """The worker that tests of one failure share."""
    one = FailingWorker(start_worker(), tmp_path_factory.mktemp("failing"))
    with one.worker:
        one.worker.await_ready()
        yield one


def ask(leader: ScriptedLeader, incarnation: str, *, stream: bool = False) -> None:
    """Put one question and see it answered rightly."""
    (question,) = questions(1)
    spec = question.spec.model_copy(update={"stream": stream})
    assert [job.output for job in leader.ended(leader.dispatch(incarnation, [spec]))] == [question.answer]


@pytest.mark.parametrize("thread", [*SERVICES, *OBSERVERS])
def test_a_thread_that_fails_once_goes_on(
    leader: ScriptedLeader, failing: FailingWorker, thread: str
) -> None:
    incarnation = failing.worker.incarnation(leader)

    failing.fail(thread, "once")
    ask(leader, incarnation, stream=True)  # a thread that waits for work takes its next step
    eventually(lambda: failing.has_logged("service.restarted", thread), 30.0, "the restart")

    ask(leader, incarnation, stream=True)
    assert failing.worker.incarnation(leader) == incarnation


@pytest.mark.parametrize("thread", SERVICES)
def test_a_thread_that_fails_for_ever_drains_the_worker(
    leader: ScriptedLeader, start_worker: StartWorker, tmp_path: Path, thread: str
) -> None:
    one = FailingWorker(start_worker(flush_s=5), tmp_path)
    with one.worker as worker:
        incarnation = worker.incarnation(leader)
        (endless,) = leader.dispatch(incarnation, [ENDLESS])
        leader.await_running(incarnation, endless)

        one.fail(thread, "ever")
        leader.dispatch(incarnation, [questions(1)[0].spec])

        assert worker.process.wait(EXIT_S) == 1
        assert one.has_logged("service.broken", thread)
    # What the worker could not give back itself, the leader takes from a worker that has said that it left.
    leader.database.run(lambda c: LeaseRepository(c).lose_worker(incarnation))
    assert leader.states([endless]) == ["queued"]


@pytest.mark.parametrize("thread", OBSERVERS)
def test_an_observer_that_fails_for_ever_ends_nothing(
    leader: ScriptedLeader, failing: FailingWorker, thread: str
) -> None:
    incarnation = failing.worker.incarnation(leader)

    failing.fail(thread, "ever")
    ask(leader, incarnation, stream=True)
    eventually(lambda: failing.has_logged("service.broken", thread), 30.0, "the last restart")

    ask(leader, incarnation, stream=True)
    assert failing.worker.terminate() == 0
