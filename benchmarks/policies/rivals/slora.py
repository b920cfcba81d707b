"""S-LoRA's clustering (Sheng et al., MLSys 2024; `slora/server/router/cluster_req_queue.py`)."""

from __future__ import annotations

from typing import Final

from benchmarks.policies.rivals.budget import Budget
from benchmarks.policies.rivals.rule import EngineRule
from benchmarks.policies.rivals.waiting import WaitingList

NUM_ADAPTERS: Final = 8
"""D: the paper's best of 1 to 32."""


class SLoRA(EngineRule):
    """First in, first out until the batch has D adapters; from then on first those whose adapter is in it.

    What room these leave is filled first in, first out; each pass ends with the first job that does not fit.
    """

    def choose(self, queue: WaitingList, budget: Budget) -> None:
        """Do one pass, or both."""
        if len(budget.view.outstanding_revisions) >= NUM_ADAPTERS:
            queue.take_in_turn(budget.view.outstanding_revisions, budget, passes_over=False)
        queue.take_in_turn(queue.lanes, budget, passes_over=False)
