"""What the leader is told, and what is kept for later."""

from __future__ import annotations

from uuid import uuid4

from db.records import FinishedJob
from lorayard.contract.messages import HeldJob, Residency
from lorayard.contract.result import JobResult
from lorayard.contract.states import JobState
from workers.engine_status import Capacity, EngineStatus
from workers.event_builder import WorkerEventBuilder, WorkerUpdate

DEVICE = Residency(revision="sha256:aa", tier="device")
HOST = Residency(revision="sha256:bb", tier="host")
GONE = Residency(revision="sha256:aa", tier="none")


def _finished() -> FinishedJob:
    job_id = uuid4()
    return FinishedJob(
        job_id, 1, JobState.SUCCEEDED, JobResult(job_id=job_id, state=JobState.SUCCEEDED), "client-1"
    )


def _builder() -> WorkerEventBuilder:
    status = EngineStatus(Capacity(8, 80))
    status.update(Capacity(5, 50), 3, [DEVICE, HOST])
    return WorkerEventBuilder("me", status)


def test_ends_go_with_changes_and_a_heartbeat_with_the_whole() -> None:
    builder = _builder()
    job = _finished()

    (ends,) = builder.events(WorkerUpdate([job]))
    builder.status.update(Capacity(5, 50), 4, [GONE])
    change, beat = builder.events(WorkerUpdate(held=(HeldJob(job_id=job.job_id, attempt=1, running=True),)))

    assert [end.job_id for end in ends.ended] == [job.job_id]
    assert (ends.residency_epoch, ends.residency, ends.held) == (3, (DEVICE, HOST), None)
    assert (ends.free_seqs, ends.free_kv_blocks) == (5, 50)
    assert change.residency == (GONE,)
    assert (beat.residency_epoch, beat.residency) == (4, (HOST,))
    assert beat.held is not None
    assert len(beat.held) == 1


def test_without_news_there_is_nothing_to_tell() -> None:
    assert WorkerEventBuilder("me", EngineStatus(Capacity(1, 1))).events(WorkerUpdate()) == []


def test_a_draining_worker_has_no_room() -> None:
    builder = _builder()
    builder.draining = True

    (event,) = builder.events(WorkerUpdate([_finished()]))

    assert event.draining
    assert (event.free_seqs, event.free_kv_blocks) == (0, 0)


def test_untold_news_merges_and_is_trimmed_from_its_old_end() -> None:
    first, second, third = _finished(), _finished(), _finished()
    update = WorkerUpdate([first], held=())
    update.merge(WorkerUpdate([second, third]))

    dropped = update.trim(2)

    assert dropped == 1
    assert update.finished == [second, third]
    assert update.held == ()


def test_a_worker_that_takes_no_work_looks_like_a_draining_one_until_it_does() -> None:
    builder = _builder()
    fits: list[bool] = []
    builder.takes_work = lambda: bool(fits)

    (refusing,) = builder.events(WorkerUpdate([_finished()]))
    fits.append(True)
    (taking,) = builder.events(WorkerUpdate([_finished()]))

    assert (refusing.draining, refusing.free_seqs) == (True, 0)
    assert (taking.draining, taking.free_seqs) == (False, 5)
