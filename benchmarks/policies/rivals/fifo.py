"""First in, first out: strictly, and as vLLM's scheduler passes over what finds no slot."""

from __future__ import annotations

from benchmarks.policies.rivals.room import Room
from benchmarks.policies.rivals.rule import EngineRule, Rule
from benchmarks.policies.rivals.waiting import WaitingList
from benchmarks.policies.workload import Job


class Fifo(Rule):
    """The oldest job goes to the worker with most room that has a slot for it; until then all others wait."""

    def fill(self, rooms: list[Room], now: float) -> None:  # noqa: ARG002
        """Place from the head on."""

        def visit(job: Job) -> bool | None:
            able = [room for room in rooms if room.has_place(job) and room.has_slot(job)]
            if not able:
                return None
            max(able, key=lambda room: room.free_seqs).place(job)
            return True

        self.waiting.scan(list(self.waiting.lanes), visit)


class FifoLru(EngineRule):
    """vLLM (v1, `max_loras`): the waiting are scanned in order, those whose adapter would be one too many skipped.

    A job that finds no blocks ends the scan. Slots and host cache evict the least recently used.
    """

    def choose(self, queue: WaitingList, room: Room) -> None:
        """Scan once."""

        def visit(job: Job) -> bool | None:
            if not room.has_place(job):
                return None
            if not room.has_slot(job):
                return False
            room.place(job)
            return True

        queue.scan(list(queue.lanes), visit)
