"""Who holds which adapter slot: the lowest free one, else the least recently used one that is not busy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from workers.engine.core.errors import AllSlotsPinned


class Assignment(NamedTuple):
    """A revision's new slot, and the revision that had to leave it."""

    slot: int
    evicted: str | None


@dataclass(slots=True)
class _Tenant:
    slot: int
    num_uses: int = 0
    pinned: bool = False

    @property
    def busy(self) -> bool:
        return self.pinned or self.num_uses > 0


class SlotTable:
    """Revisions by slot, with the number of running sequences that use each."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()  # least recently used first

    def __contains__(self, revision: str) -> bool:
        return revision in self._tenants

    def __len__(self) -> int:
        return len(self._tenants)

    def slot_of(self, revision: str) -> int | None:
        tenant = self._tenants.get(revision)
        return None if tenant is None else tenant.slot

    def num_uses(self, revision: str) -> int:
        tenant = self._tenants.get(revision)
        return 0 if tenant is None else tenant.num_uses

    def is_busy(self, revision: str) -> bool:
        """Tell whether the revision is in use or pinned, so that it must stay."""
        tenant = self._tenants.get(revision)
        return tenant is not None and tenant.busy

    def is_pinned(self, revision: str) -> bool:
        tenant = self._tenants.get(revision)
        return tenant is not None and tenant.pinned

    def can_seat(self, revisions: Collection[str]) -> bool:
        """Tell whether all could have slots at once; AllSlotsPinned when waiting cannot help."""
        others = [tenant for held, tenant in self._tenants.items() if held not in revisions]
        num_wanted = len(set(revisions))
        if num_wanted + sum(tenant.pinned for tenant in others) > self.num_slots:
            raise AllSlotsPinned(
                f"no slots for {', '.join(revisions)}: of {self.num_slots}, too many hold pinned adapters; "
                "unpin one, or raise max_loras"
            )
        return num_wanted + sum(tenant.busy for tenant in others) <= self.num_slots

    def assign(self, revision: str) -> Assignment | None:
        """Give a revision a slot; None while all are busy, AllSlotsPinned when waiting cannot help."""
        assert revision not in self._tenants, f"{revision} already has a slot"
        if len(self._tenants) < self.num_slots:
            evicted, slot = None, self._lowest_free()
        else:
            evicted = next((held for held, tenant in self._tenants.items() if not tenant.busy), None)
            if evicted is None:
                self._refuse_if_all_pinned(revision)
                return None
            slot = self.free(evicted)
        self._tenants[revision] = _Tenant(slot)
        return Assignment(slot, evicted)

    def use(self, revision: str) -> int:
        """Count one more sequence on a revision's slot and make it the most recently used."""
        tenant = self._tenants[revision]
        tenant.num_uses += 1
        self.touch(revision)
        return tenant.slot

    def touch(self, revision: str) -> None:
        """Make a revision the most recently used."""
        self._tenants.move_to_end(revision)

    def release(self, revision: str) -> None:
        """Count one sequence less."""
        tenant = self._tenants.get(revision)
        if tenant is None or tenant.num_uses == 0:
            raise ValueError(
                f"{revision} is in no running sequence; release once for each acquire that gave a slot"
            )
        tenant.num_uses -= 1

    def pin(self, revision: str) -> None:
        self._tenants[revision].pinned = True

    def unpin(self, revision: str) -> bool:
        """Undo `pin`; False if it was not pinned."""
        tenant = self._tenants.get(revision)
        if tenant is None or not tenant.pinned:
            return False
        tenant.pinned = False
        return True

    def free(self, revision: str) -> int:
        """Take a revision out of its slot and return the slot."""
        tenant = self._tenants.pop(revision)
        assert tenant.num_uses == 0, f"{revision} is used by {tenant.num_uses} running sequences"
        return tenant.slot

    def _lowest_free(self) -> int:
        held = {tenant.slot for tenant in self._tenants.values()}
        return next(slot for slot in range(self.num_slots) if slot not in held)

    def _refuse_if_all_pinned(self, revision: str) -> None:
        if all(tenant.pinned for tenant in self._tenants.values()):
            raise AllSlotsPinned(
                f"no slot for {revision}: all {self.num_slots} hold pinned adapters; unpin one, or raise "
                "max_loras"
            )
