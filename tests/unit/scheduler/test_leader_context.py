"""What Redis had no room for is kept in order, within a bound, until it was sent."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from scheduler.leader_context import MAX_UNTOLD, Untold


def commands(*numbers: int) -> list[tuple[object, ...]]:
    return [("XADD", "reply", number) for number in numbers]


def test_what_is_taken_is_gone_once_sent_and_back_in_its_place_after_a_failure() -> None:
    untold = Untold()
    untold.keep(commands(1, 2))

    def fail() -> None:
        with untold.taken() as first:
            assert first == commands(1, 2)
            untold.keep(commands(3))
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fail()
    with untold.taken() as again:
        assert again == commands(1, 2, 3)
    with untold.taken() as rest:
        assert rest == []


def test_the_oldest_give_way_and_that_is_told() -> None:
    untold = Untold()
    with capture_logs() as logs:
        untold.keep(commands(*range(MAX_UNTOLD)))
        untold.keep(commands(-1, -2))

    with untold.taken() as kept:
        assert kept[0] == ("XADD", "reply", 2)
        assert kept[-2:] == commands(-1, -2)
    assert [line["commands"] for line in logs] == [2]
