"""What the leader is told, and what is kept for later."""

from __future__ import annotations

from uuid import uuid4

from db.records import FinishedJob
from lorayard.contract.messages import HeldJob, Residency
from lorayard.contract.result import JobResult
from lorayard.contract.states import JobState
from workers.bulletin import Bulletin, Reporter
from workers.vitals import Room, Vitals

DEVICE = Residency(revision="sha256:aa", tier="device")
HOST = Residency(revision="sha256:bb", tier="host")
GONE = Residency(revision="sha256:aa", tier="none")


def _finished() -> FinishedJob:
    job_id = uuid4()
    return FinishedJob(
        job_id, 1, JobState.SUCCEEDED, JobResult(job_id=job_id, state=JobState.SUCCEEDED), "client-1"
    )


def _reporter() -> Reporter:
    vitals = Vitals(Room(8, 80))
    vitals.update(Room(5, 50), 3, [DEVICE, HOST])
    return Reporter("me", vitals)


def test_ends_go_with_changes_and_a_heartbeat_with_the_whole() -> None:
    reporter = _reporter()
    job = _finished()

    (ends,) = reporter.events(Bulletin([job]))
    reporter.vitals.update(Room(5, 50), 4, [GONE])
    change, beat = reporter.events(Bulletin(held=(HeldJob(job_id=job.job_id, attempt=1, running=True),)))

    assert [end.job_id for end in ends.ended] == [job.job_id]
    assert (ends.residency_epoch, ends.residency, ends.held) == (3, (DEVICE, HOST), None)
    assert (ends.free_seqs, ends.free_kv_blocks) == (5, 50)
    assert change.residency == (GONE,)
    assert (beat.residency_epoch, beat.residency) == (4, (HOST,))
    assert beat.held is not None
    assert len(beat.held) == 1


def test_without_news_there_is_nothing_to_tell() -> None:
    assert Reporter("me", Vitals(Room(1, 1))).events(Bulletin()) == []


def test_a_draining_worker_has_no_room() -> None:
    reporter = _reporter()
    reporter.draining = True

    (event,) = reporter.events(Bulletin([_finished()]))

    assert event.draining
    assert (event.free_seqs, event.free_kv_blocks) == (0, 0)


def test_untold_news_merges_and_is_trimmed_from_its_old_end() -> None:
    first, second, third = _finished(), _finished(), _finished()
    bulletin = Bulletin([first], held=())
    bulletin.merge(Bulletin([second, third]))

    dropped = bulletin.trim(2)

    assert dropped == 1
    assert bulletin.finished == [second, third]
    assert bulletin.held == ()


def test_a_worker_that_takes_no_work_looks_like_a_draining_one_until_it_does() -> None:
    reporter = _reporter()
    fits: list[bool] = []
    reporter.takes_work = lambda: bool(fits)

    (refusing,) = reporter.events(Bulletin([_finished()]))
    fits.append(True)
    (taking,) = reporter.events(Bulletin([_finished()]))

    assert (refusing.draining, refusing.free_seqs) == (True, 0)
    assert (taking.draining, taking.free_seqs) == (False, 5)
