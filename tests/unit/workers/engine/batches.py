"""A batcher without a model: fake adapter slots, sequences of threes, and steps that are only pretended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from workers.engine import LoRAMix, LoRARequest, SamplingParams
from workers.engine.core.composition import AcquiredSlot
from workers.engine.core.errors import AdapterNotFound
from workers.engine.core.sequence import SequenceState
from workers.engine.kv.kv_cache import BlockAllocator
from workers.engine.scheduling.batching import Batcher, Schedule

BLOCK_SIZE = 16


class Slots:
    """An adapter manager's answers: what is loaded, and how many slots there are."""

    def __init__(self, num_slots: int, loaded: set[str] | None = None) -> None:
        self.num_slots = num_slots
        self.loaded = loaded
        self.uses: Counter[str] = Counter()

    def acquire_all(self, requests: Sequence[LoRARequest]) -> tuple[AcquiredSlot, ...] | None:
        names = [request.lora_name for request in requests]
        if "missing" in names:
            raise AdapterNotFound("no such adapter")
        if not all(self.is_loaded(request) for request in requests):
            return None
        if len({*+self.uses, *names}) > self.num_slots:
            return None
        self.uses.update(names)
        return tuple(AcquiredSlot(name, sorted(+self.uses).index(name)) for name in names)

    def release(self, request: LoRARequest) -> None:
        self.uses[request.lora_name] -= 1
        assert self.uses[request.lora_name] >= 0

    def is_loaded(self, request: LoRARequest) -> bool:
        return self.loaded is None or request.lora_name in self.loaded


def lora(names: str) -> LoRAMix:
    """A mix of the adapters of one letter that `names` lists, or of the one that it names."""
    members = names.split("+")
    return LoRAMix([(LoRARequest(name, ord(name[0]), "path"), 0.5) for name in members])


def sequence(
    request_id: str,
    num_prompt_tokens: int = 10,
    adapters: str | None = None,
    *,
    token_ids: list[int] | None = None,
) -> SequenceState:
    return SequenceState(
        request_id,
        None,
        [3] * num_prompt_tokens if token_ids is None else token_ids,
        SamplingParams(),
        None if adapters is None else lora(adapters),
        seed=0,
        max_total_tokens=200,
        stop_checker=None,
        arrival_time_s=0.0,
    )


def batcher(
    num_blocks: int = 100, slots: Slots | None = None, *, max_num_seqs: int = 8, budget: int = 64
) -> Batcher:
    return Batcher(
        BlockAllocator(num_blocks + 1),
        slots,
        block_size=BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
    )


def rows(schedule: Schedule) -> list[tuple[str, int]]:
    return [(row.sequence.request_id, row.num_tokens) for row in schedule.rows]


def run(schedule: Schedule) -> None:
    """Pretend the step was executed: a complete sequence gains a token."""
    for row in schedule.rows:
        row.sequence.num_computed_tokens += row.num_tokens
        if row.sequence.num_uncomputed_tokens == 0:
            row.sequence.token_ids.append(3)
