"""dLoRA's credit-based batching (Wu et al., OSDI 2024; `vllm/core/scheduler.py` of its artifact)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from benchmarks.policies.policy import Setting
from benchmarks.policies.rivals.budget import Budget
from benchmarks.policies.rivals.rule import EngineRule
from benchmarks.policies.rivals.waiting import WaitingList
from benchmarks.policies.workload import Job

MERGED_S: Final = 0.015
UNMERGED_S: Final = 0.027
SWITCH_S: Final = 0.02
"""Iterations and a switch of mode, as the artifact has them for Llama-7B."""
SPEED_RATE: Final = MERGED_S / UNMERGED_S
ADD: Final = 0.05
MULTIPLY: Final = 1.1


@dataclass(slots=True)
class Engine:
    """Mutable: one engine's credits, mode and thresholds."""

    credit: dict[str, float]
    in_credit: set[str] = field(default_factory=set)
    merged: str | None = None
    merge_right: float = 1.0
    """The longest queue is merged if it is at least so many times the FIFO batch..."""
    merge_left: float = SPEED_RATE
    """... and stays so until it is below this many."""
    num_rounds: int = 0
    num_merged: int = 0
    num_unmerged: int = 0


class DLoRA(EngineRule):
    """Adapters with much credit first; else one adapter alone while its queue outweighs the FIFO batch.

    Else first in, first out, passing over adapters that find no slot. Who is chosen out of turn pays credit
    to those he displaced. Unlike the artifact, which chooses anew at each iteration, this chooses for the
    places that come free and leaves running jobs alone; a merged batch is no faster here than the step model
    makes a batch of one adapter.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        num_adapters = len(setting.adapters)
        self._high = 1e4 * num_adapters
        self._low = self._high - 5e3
        self._cost = 1 / setting.pool.max_num_seqs
        self.engines = {
            name: Engine(dict.fromkeys(setting.adapters, 1e4 * (num_adapters - 1)))
            for name in setting.workers
        }

    def choose(self, queue: WaitingList, budget: Budget) -> None:
        """Choose for one engine's free places."""
        engine = self.engines[budget.view.incarnation]
        fifo = queue.first(budget.free_seqs)
        engine.num_rounds += 1
        engine.in_credit = {
            name
            for name, credit in engine.credit.items()
            if credit >= self._high or (name in engine.in_credit and credit >= self._low)
        }
        in_credit = [name for name in engine.in_credit if queue.num_of(name)]
        if in_credit:
            queue.take_in_turn(sorted(in_credit, key=lambda name: -engine.credit[name]), budget)
            queue.take_in_turn(budget.lanes(queue.lanes.keys()), budget)
            self._pay(engine, budget.placed, fifo, self._cost)
            return
        merged = self._merged(engine, queue, len(fifo))
        engine.num_merged += min(queue.num_of(merged) if merged else 0, len(fifo))
        engine.num_unmerged += len(fifo)
        if merged is None:
            self._set_mode(engine, None)
            queue.take_in_turn(budget.lanes(queue.lanes.keys()), budget)
            self._pay(engine, budget.placed, fifo, self._cost)
        else:
            self._set_mode(engine, merged)
            queue.take_in_turn([merged], budget)
            self._pay(engine, budget.placed, fifo, self._cost / SPEED_RATE)

    def _merged(self, engine: Engine, queue: WaitingList, num_fifo: int) -> str | None:
        """Choose the adapter to serve alone; None to mix."""
        if engine.merged and queue.num_of(engine.merged) >= engine.merge_left * num_fifo:
            return engine.merged
        solvent = [name for name in queue.lanes if engine.credit[name] >= 0]
        longest = max(solvent, key=queue.num_of, default=None)
        if longest is not None and queue.num_of(longest) >= engine.merge_right * num_fifo:
            return longest
        return None

    def _set_mode(self, engine: Engine, merged: str | None) -> None:
        """Go over to another mode, and move its threshold by what either mode would have done."""
        if merged == engine.merged:
            return
        merged_rate = engine.num_merged / (
            MERGED_S * engine.num_rounds + SWITCH_S * (engine.merged is not None)
        )
        mixed_rate = engine.num_unmerged / (
            UNMERGED_S * engine.num_rounds + SWITCH_S * (engine.merged is None)
        )
        if engine.merged is not None:
            if merged_rate < mixed_rate:
                engine.merge_right *= MULTIPLY
            elif engine.merge_right - ADD > engine.merge_left:
                engine.merge_right -= ADD
        elif mixed_rate < merged_rate:
            engine.merge_left /= MULTIPLY
        elif engine.merge_left + ADD < engine.merge_right:
            engine.merge_left += ADD
        engine.merged = merged
        engine.num_rounds = engine.num_merged = engine.num_unmerged = 0

    @staticmethod
    def _pay(engine: Engine, chosen: list[Job], fifo: list[Job], cost: float) -> None:
        """Move credit from those chosen out of turn to those who would have been."""
        in_turn = {job.number for job in fifo}
        taken = {job.number for job in chosen}
        early = [job for job in chosen if job.number not in in_turn]
        displaced = [job for job in fifo if job.number not in taken]
        for payer, paid in zip(early, displaced, strict=False):
            engine.credit[payer.adapter.name] -= cost
            engine.credit[paid.adapter.name] += cost
