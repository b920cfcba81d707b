"""A store that cannot be read costs its own workers a pause; what fails at two is the revision's fault."""

from __future__ import annotations

from scheduler.store_failures import StoreFailure, StoreFailures

HERE, THERE = "one:/store", "two:/store"


def fail(failures: StoreFailures, revision: str, at: float, store: str = HERE) -> StoreFailure | None:
    failure = failures.failure(revision, store, "adapter_not_found", "there is no folder", at)
    if failure is not None:
        failures.keep(failure)
    return failure


def is_to_blame(
    failures: StoreFailures, revision: str, at: float, store: str = HERE, stores: tuple[str, ...] = (HERE,)
) -> bool:
    failure = failures.failure(revision, store, "adapter_not_found", "there is no folder", at)
    assert failure is not None, "it cools down there"
    verdict = failures.is_to_blame(failure, stores)
    failures.keep(failure)
    return verdict


def test_a_failure_cools_down_for_half_a_minute_at_its_own_store_alone() -> None:
    failures = StoreFailures()

    fail(failures, "r", 0.0)

    assert failures.cooling(HERE, 29.9) == {"r"}
    assert failures.cooling(HERE, 30.0) == set()
    assert failures.cooling(THERE, 1.0) == set()


def test_pauses_double_up_to_ten_minutes() -> None:
    failures, now, pauses = StoreFailures(), 0.0, []

    for _ in range(7):
        failure = fail(failures, "r", now)
        assert failure is not None
        pauses.append(failure.until - now)
        now = failure.until

    assert pauses == [30, 60, 120, 240, 480, 600, 600]


def test_many_jobs_that_tell_of_one_load_are_one_failure() -> None:
    failures = StoreFailures()

    assert fail(failures, "r", 0.0) is not None
    assert [fail(failures, "r", at) for at in (0.0, 1.0, 29.9)] == [None, None, None]
    assert [one.tries for one in failures] == [1]


def test_after_a_long_time_pauses_begin_anew() -> None:
    failures = StoreFailures()
    fail(failures, "r", 0.0)

    late = fail(failures, "r", 1_200.1)

    assert late is not None
    assert (late.tries, late.until - late.failed_at) == (1, 30.0)
    failures.prune(2_400.0)
    assert list(failures) == [late]
    failures.prune(2_400.2)
    assert list(failures) == []


def test_two_stores_that_failed_blame_the_revision() -> None:
    failures = StoreFailures()

    assert not is_to_blame(failures, "r", 0.0, HERE, (HERE, THERE))
    assert is_to_blame(failures, "r", 5.0, THERE, (HERE, THERE))


def test_one_of_two_stores_never_blames_the_revision_however_often_it_fails() -> None:
    failures = StoreFailures()

    for at in (0.0, 30.0, 90.0, 210.0, 450.0):
        failures.loaded("other", HERE, at)
        assert not is_to_blame(failures, "r", at, HERE, (HERE, THERE))


def test_a_failure_of_long_ago_at_another_store_counts_no_more() -> None:
    failures = StoreFailures()
    fail(failures, "r", 0.0)

    assert not is_to_blame(failures, "r", 1_200.1, THERE, (HERE, THERE))


def test_what_loaded_meanwhile_is_good_and_its_failure_before_counts_no_more() -> None:
    failures = StoreFailures()
    fail(failures, "r", 0.0)

    failures.loaded("r", THERE, 10.0)

    assert failures.cooling(HERE, 20.0) == {"r"}  # that store is still left alone
    assert not is_to_blame(failures, "r", 20.0, THERE, (HERE, THERE))


def test_stores_that_give_nothing_blame_nobody() -> None:
    failures = StoreFailures()
    stores = (HERE, THERE)

    verdicts = [
        is_to_blame(failures, revision, at, store, stores)
        for at, revision, store in [(0.0, "a", HERE), (0.1, "b", HERE), (0.2, "b", THERE), (0.3, "a", THERE)]
    ]

    assert verdicts == [False] * 4


def test_the_only_store_blames_a_revision_after_three_tries_while_another_loads_from_it() -> None:
    failures = StoreFailures()

    assert not is_to_blame(failures, "r", 0.0)
    failures.loaded("other", HERE, 10.0)
    assert not is_to_blame(failures, "r", 30.0)
    assert is_to_blame(failures, "r", 90.0)


def test_the_only_store_that_gives_nothing_since_blames_nobody() -> None:
    failures = StoreFailures()
    failures.loaded("other", HERE, -1.0)

    assert not any(is_to_blame(failures, "r", at) for at in (0.0, 30.0, 90.0, 210.0, 450.0, 930.0))


def test_the_only_store_away_for_a_day_blames_nobody_and_is_asked_every_ten_minutes() -> None:
    failures, now, tries = StoreFailures(), 0.0, 0
    failures.loaded("other", HERE, -1.0)

    while now < 86_400.0:
        assert not is_to_blame(failures, "r", now)
        tries += 1
        (failure,) = failures
        now = failure.until

    assert 86_400 / 600 <= tries <= 86_400 / 600 + 5


def test_three_tries_within_a_minute_are_too_few() -> None:
    failures = StoreFailures()
    failures.restore([StoreFailure("r", HERE, "c", "why", 0.0, 20.0, 50.0, 30.0, tries=2)])
    failures.loaded("other", HERE, 40.0)

    assert not is_to_blame(failures, "r", 59.9)


def test_a_store_that_is_back_is_asked_for_everything_after_no_more_than_a_first_pause() -> None:
    failures = StoreFailures()
    for at in (0.0, 30.0, 90.0, 210.0):
        for revision in ("a", "b", "c"):
            fail(failures, revision, at)
    assert failures.cooling(HERE, 300.0) == {"a", "b", "c"}

    failures.loaded("a", HERE, 300.0)

    assert failures.cooling(HERE, 300.0) == set()


def test_tries_at_a_store_that_gave_nothing_count_for_nothing_once_it_is_back() -> None:
    failures = StoreFailures()
    for at in (0.0, 30.0, 90.0, 210.0):
        for revision in ("a", "b"):
            fail(failures, revision, at)
    failures.loaded("c", HERE, 300.0)

    assert not is_to_blame(failures, "b", 301.0)
    failures.loaded("c", HERE, 302.0)
    assert not is_to_blame(failures, "b", 361.0)
    assert is_to_blame(failures, "b", 481.0)


def test_two_revisions_that_are_gone_from_a_store_that_gives_are_both_blamed_in_time() -> None:
    failures = StoreFailures()
    blamed: dict[str, float] = {}

    for now in range(0, 1_000, 10):
        for revision in {"a", "b"} - blamed.keys() - failures.cooling(HERE, now):
            if is_to_blame(failures, revision, now):
                blamed[revision] = now
        failures.loaded(f"other-{now}", HERE, now + 5.0)

    assert blamed.keys() == {"a", "b"}
    assert max(blamed.values()) <= 300.0


def test_what_has_loaded_is_cleared_at_all_stores() -> None:
    failures = StoreFailures()
    fail(failures, "a", 0.0)
    fail(failures, "a", 0.0, THERE)

    failures.loaded("a", HERE, 31.0)

    assert [(one.revision, one.store, one.tries) for one in failures] == [("a", THERE, 0)]


def test_a_load_of_another_revision_ends_no_pause_of_a_store_that_gives() -> None:
    failures = StoreFailures()
    fail(failures, "bad", 0.0)

    failures.loaded("good", HERE, 1.0)

    assert failures.cooling(HERE, 2.0) == {"bad"}
