"""Who holds which adapter slot: the lowest free one, else the least recently used one that is not busy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from workers.engine.core.errors import AllSlotsPinned


class Assignment(NamedTuple):
    """A revision's new slot, and the revision that had to leave it."""

    slot: int
    evicted: str | None


@dataclass(slots=True)
class _Occupied:
    slot: int
    num_uses: int = 0
    arriving: bool = False  # its weights are on their way to the device


class SlotTable:
    """Revisions by slot, with the number of running sequences that use each."""

    def __init__(self, num_slots: int, *, has_pin: Callable[[str], bool] = lambda _: False) -> None:
        """`has_pin` tells whether an owner has pinned a revision, which then keeps the slot it has."""
        self.num_slots = num_slots
        self._has_pin = has_pin
        self._occupied: OrderedDict[str, _Occupied] = OrderedDict()  # least recently used first

    def __contains__(self, revision: str) -> bool:
        return revision in self._occupied

    def __len__(self) -> int:
        return len(self._occupied)

    def slot_of(self, revision: str) -> int | None:
        """Return the slot a revision has, None if it has none."""
        held_slot = self._occupied.get(revision)
        return None if held_slot is None else held_slot.slot

    def num_uses(self, revision: str) -> int:
        """Count the sequences that use the revision's slot."""
        held_slot = self._occupied.get(revision)
        return 0 if held_slot is None else held_slot.num_uses

    def is_busy(self, revision: str) -> bool:
        """Tell whether the revision is in use or pinned, so that it must stay."""
        held_slot = self._occupied.get(revision)
        return held_slot is not None and self._must_stay(revision, held_slot)

    def is_pinned(self, revision: str) -> bool:
        """Tell whether the revision is pinned to its slot."""
        held_slot = self._occupied.get(revision)
        return held_slot is not None and self._has_pin(revision)

    def set_arriving(self, revision: str, is_arriving: bool) -> None:
        """Note whether a revision's weights are on their way; until they are there it must stay."""
        self._occupied[revision].arriving = is_arriving

    def is_arriving(self, revision: str) -> bool:
        """Tell whether a revision has a slot that its weights have not reached yet."""
        held_slot = self._occupied.get(revision)
        return held_slot is not None and held_slot.arriving

    @property
    def num_underway(self) -> int:
        """Count the revisions that sequences use or that are on their way: they will not be so forever."""
        return sum(held_slot.num_uses > 0 or held_slot.arriving for held_slot in self._occupied.values())

    def idle(self, keep: Collection[str] = ()) -> str | None:
        """Return the least recently used revision that may leave, none of those to `keep`."""
        return next(
            (
                held
                for held, held_slot in self._occupied.items()
                if held not in keep and not self._must_stay(held, held_slot)
            ),
            None,
        )

    def can_hold(self, revisions: Collection[str], keep: Collection[str] = ()) -> bool:
        """Tell whether all could have slots at once, beside those to `keep`.

        AllSlotsPinned when waiting cannot help.
        """
        others = [(held, held_slot) for held, held_slot in self._occupied.items() if held not in revisions]
        num_wanted = len(set(revisions))
        if num_wanted + sum(self._has_pin(held) for held, _ in others) > self.num_slots:
            raise AllSlotsPinned(
                f"no slots for {', '.join(revisions)}: of {self.num_slots}, too many hold pinned adapters; "
                "unpin one, or raise max_loras"
            )
        num_staying = sum(held in keep or self._must_stay(held, held_slot) for held, held_slot in others)
        return num_wanted + num_staying <= self.num_slots

    def assign(self, revision: str, keep: Collection[str] = ()) -> Assignment | None:
        """Give a revision a slot; None while all are busy or to `keep`.

        AllSlotsPinned when waiting cannot help.
        """
        assert revision not in self._occupied, f"{revision} already has a slot"
        if len(self._occupied) < self.num_slots:
            evicted, slot = None, self._lowest_free()
        else:
            evicted = self.idle(keep)
            if evicted is None:
                self._refuse_if_all_pinned(revision)
                return None
            slot = self.free(evicted)
        self._occupied[revision] = _Occupied(slot)
        return Assignment(slot, evicted)

    def use(self, revision: str) -> int:
        """Count one more sequence on a revision's slot and make it the most recently used."""
        held_slot = self._occupied[revision]
        held_slot.num_uses += 1
        self.touch(revision)
        return held_slot.slot

    def touch(self, revision: str) -> None:
        """Make a revision the most recently used."""
        self._occupied.move_to_end(revision)

    def release(self, revision: str) -> None:
        """Count one sequence less."""
        held_slot = self._occupied.get(revision)
        if held_slot is None or held_slot.num_uses == 0:
            raise ValueError(
                f"{revision} is in no running sequence; release once for each acquire that gave a slot"
            )
        held_slot.num_uses -= 1

    def free(self, revision: str) -> int:
        """Take a revision out of its slot and return the slot."""
        held_slot = self._occupied.pop(revision)
        assert held_slot.num_uses == 0, f"{revision} is used by {held_slot.num_uses} running sequences"
        return held_slot.slot

    def _must_stay(self, revision: str, held_slot: _Occupied) -> bool:
        return held_slot.num_uses > 0 or held_slot.arriving or self._has_pin(revision)

    def _lowest_free(self) -> int:
        held = {held_slot.slot for held_slot in self._occupied.values()}
        return next(slot for slot in range(self.num_slots) if slot not in held)

    def _refuse_if_all_pinned(self, revision: str) -> None:
        if all(map(self._has_pin, self._occupied)):
            raise AllSlotsPinned(
                f"no slot for {revision}: all {self.num_slots} hold pinned adapters; unpin one, or raise "
                "max_loras"
            )
