"""S-LoRA's clustering (Sheng et al., MLSys 2024; `slora/server/router/cluster_req_queue.py`)."""

from __future__ import annotations

from typing import Final

from benchmarks.policies.rivals.room import Room
from benchmarks.policies.rivals.rule import EngineRule
from benchmarks.policies.rivals.waiting import WaitingList
from benchmarks.policies.workload import Job

NUM_ADAPTERS: Final = 8
"""D: the paper's best of 1 to 32."""


class SLoRA(EngineRule):
    """First in, first out until the batch has D adapters; from then on first those whose adapter is in it.

    What room these leave is filled first in, first out; each pass ends with the first job that does not fit.
    """

    def choose(self, queue: WaitingList, room: Room) -> None:
        """Do one pass, or both."""

        def visit(job: Job) -> bool | None:
            if not (room.has_place(job) and room.has_slot(job)):
                return None
            room.place(job)
            return True

        if len(room.view.outstanding_revisions) >= NUM_ADAPTERS:
            queue.scan(list(room.view.outstanding_revisions), visit)
        queue.scan(list(queue.lanes), visit)
