"""When a job's message is to blame, when its worker is, and what an answer to a ping says of both."""

from __future__ import annotations

from uuid import UUID, uuid4

from db.records import JobAttempt
from scheduler.hearing import PING_EVERY_S, SILENT_S, Hearing, Missing, Unlisted


def sent(
    message: int,
    at: float = 0.0,
    *,
    patience_s: float = 3.0,
    job_id: UUID | None = None,
    excused: bool = False,
) -> Unlisted:
    return Unlisted(JobAttempt(job_id or uuid4(), 1), message, at, patience_s, excused)


def pairs(*jobs: Unlisted) -> tuple[JobAttempt, ...]:
    return tuple(job.pair for job in jobs)


def test_a_message_that_others_overtook_is_lost_and_the_worker_hears() -> None:
    hearing, job = Hearing(), sent(4)
    hearing.heard(5)
    hearing.listed(2.9)
    assert not hearing.missing([job], 2.9)

    hearing.listed(3.0)
    assert hearing.missing([job], 3.0) == Missing(lost=pairs(job))
    assert not hearing.is_deaf


def test_a_neighbour_listed_from_the_same_message_shows_that_it_came() -> None:
    hearing, job = Hearing(), sent(4)
    hearing.heard(4)
    hearing.listed(3.0)

    assert hearing.missing([job], 3.0).lost == pairs(job)


def test_a_worker_that_listed_nothing_since_is_deaf_and_all_on_its_way_comes_back() -> None:
    hearing, old, young = Hearing(), sent(4), sent(9, 2.5)
    hearing.heard(3)
    hearing.listed(3.0)

    assert hearing.missing([old, young], 3.0) == Missing(unheard=pairs(old, young))
    assert hearing.is_deaf


def test_time_in_which_no_list_was_read_is_held_against_nobody() -> None:
    hearing, job = Hearing(), sent(4)
    hearing.listed(0.5)

    hearing.begin_after_standstill(100.0)
    assert not hearing.missing([job], 100.0)
    hearing.listed(100.1)  # an old one, from before the job came
    assert not hearing.missing([job], 100.1)

    hearing.listed(103.0)
    assert hearing.missing([job], 103.0).unheard == pairs(job)


def test_more_patience_is_waited_out() -> None:
    hearing, job = Hearing(), sent(4, patience_s=12.0)
    hearing.listed(11.9)
    assert not hearing.missing([job], 11.9)

    hearing.listed(12.0)
    assert hearing.missing([job], 12.0).unheard == pairs(job)


def test_a_worker_without_any_list_is_deaf_after_a_longer_silence() -> None:
    hearing, job = Hearing(), sent(0)

    assert not hearing.missing([job], SILENT_S - 0.1)
    assert hearing.missing([job], SILENT_S).unheard == pairs(job)


def test_what_came_before_the_ledger_was_read_anew_says_nothing() -> None:
    hearing, job = Hearing(), sent(0, excused=True)
    hearing.listed(5.0)
    hearing.begin(30.0)
    assert not hearing.missing([job], 30.0 + SILENT_S - 0.1)

    hearing.listed(31.0)
    assert hearing.missing([job], 31.0) == Missing(excused=pairs(job))
    assert not hearing.is_deaf


def test_pings_are_repeated_until_one_of_them_is_answered() -> None:
    names = [uuid4(), uuid4()]
    hearing = Hearing(iter(names).__next__)
    assert hearing.next_ping(0.0) is None

    hearing.listed(3.0)
    hearing.missing([sent(0)], 3.0)
    assert hearing.next_ping(3.0) == names[0]
    assert hearing.next_ping(3.0 + PING_EVERY_S - 0.1) is None
    assert hearing.next_ping(3.0 + PING_EVERY_S) == names[1]

    hearing.answered(uuid4())
    assert hearing.is_deaf, "not of these pings"
    hearing.answered(names[0])
    assert not hearing.is_deaf
    assert hearing.next_ping(100.0) is None


def test_of_a_deaf_worker_that_answers_only_the_first_message_is_to_blame() -> None:
    hearing, one, neighbour, behind = Hearing(), uuid4(), uuid4(), uuid4()
    hearing.listed(3.0)
    hearing.missing([sent(8, job_id=behind), sent(7, job_id=one), sent(7, job_id=neighbour)], 3.0)
    ping = hearing.next_ping(3.0)
    assert ping is not None

    assert hearing.answered(ping) == {one, neighbour}
    assert hearing.answered(ping) == frozenset()
