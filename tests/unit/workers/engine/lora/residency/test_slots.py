from __future__ import annotations

import pytest

from workers.engine.core.errors import AllSlotsPinned
from workers.engine.lora.residency.slots import SlotTable


def test_the_lowest_free_slot_is_given() -> None:
    slots = SlotTable(3)

    assert [slots.assign(name) for name in "abc"] == [(0, None), (1, None), (2, None)]
    slots.free("a")
    slots.free("b")
    assert slots.assign("d") == (0, None)


def test_the_least_recently_used_leaves_when_all_are_taken() -> None:
    slots = SlotTable(2)
    slots.assign("a")
    slots.assign("b")
    slots.use("a")
    slots.release("a")

    assert slots.assign("c") == (1, "b")
    assert slots.assign("d") == (0, "a")


def test_one_in_use_or_pinned_never_leaves() -> None:
    slots = SlotTable(3, has_pin="b".__eq__)
    for name in "abc":
        slots.assign(name)
    slots.use("a")

    assert slots.assign("d") == (2, "c")
    slots.use("d")
    assert slots.assign("e") is None
    slots.release("a")
    assert slots.assign("e") == (0, "a")


def test_all_pinned_is_an_error_that_waiting_cannot_cure() -> None:
    pins = {"a", "b", "never seen"}
    slots = SlotTable(2, has_pin=pins.__contains__)
    for name in "ab":
        slots.assign(name)

    with pytest.raises(AllSlotsPinned, match="no slot for c: all 2 hold pinned adapters; unpin one"):
        slots.assign("c")
    assert not slots.is_pinned("never seen"), "it has no slot to keep"
    pins.remove("a")
    assert slots.assign("c") == (0, "a")


def test_uses_are_counted_and_cannot_go_below_none() -> None:
    slots = SlotTable(1)
    slots.assign("a")
    assert [slots.use("a"), slots.use("a")] == [0, 0]
    slots.release("a")
    assert slots.is_busy("a")
    slots.release("a")
    assert not slots.is_busy("a")

    with pytest.raises(ValueError, match="a is in no running sequence"):
        slots.release("a")
    with pytest.raises(ValueError, match="b is in no running sequence"):
        slots.release("b")
