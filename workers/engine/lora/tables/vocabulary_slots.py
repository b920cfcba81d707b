"""What each slot's adapter does to embedding and head; a step without such adapters pays nothing for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor

from kernels.linear.logits import Head
from kernels.linear.row_padding import padded_rows
from kernels.lora.reference import apply_dora
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule
from kernels.registry import Kernels
from workers.engine.lora.tables.adapter_weights import EmbeddingLoRA, VocabularyWeights

_Value = TypeVar("_Value")


class VocabularySlots:
    """Slots for embedding and head; these come once per step, so that a loop over its runs costs little."""

    def __init__(self, head: LoRAModule, kernels: Kernels) -> None:
        """`head` is the head's LoRA in the table that kernels read."""
        self._head_kernel = kernels.logits
        self._lora_add = kernels.lora_add_float32
        self._head = head
        self._head_slots: set[int] = set()  # whose adapters have LoRA of the head
        self._embeddings: dict[int, EmbeddingLoRA] = {}
        self._saved_embeddings: dict[int, Tensor] = {}
        self._saved_heads: dict[int, Head] = {}

    def point(self, slot: int, weights: VocabularyWeights) -> None:
        """Make `slot` serve an adapter whose row the table has; nothing of the last one stays."""
        self._head_slots.discard(slot)
        if weights.head is not None:
            self._head_slots.add(slot)
        saved_head = None if weights.saved_head is None else Head(weights.saved_head, self._head_kernel)
        _set(self._embeddings, slot, weights.embedding)
        _set(self._saved_embeddings, slot, weights.saved_embedding)
        _set(self._saved_heads, slot, saved_head)

    def adapt_embedded(
        self,
        embedded: Tensor,  # [num_rows, hidden_size], changed in place
        token_ids: Tensor,  # [num_rows] int64
        segments: Segments,
    ) -> None:
        """Replace or change the rows of adapters that have an embedding of their own or LoRA for it."""
        if not (self._embeddings or self._saved_embeddings):
            return
        for start, end, slot, scales in _runs(segments):
            rows, ids = embedded[start:end], token_ids[start:end]
            if (saved := self._saved_embeddings.get(slot)) is not None:
                rows.copy_(saved[ids])
            if (lora := self._embeddings.get(slot)) is not None:
                _add_embedding(rows, ids, lora, scales)

    def adapts_embedded(self, segments: Segments) -> bool:
        """Whether some row's adapter has an embedding of its own or LoRA for it."""
        if not (self._embeddings or self._saved_embeddings):
            return False
        slots = {run.slot for lora_pass in segments.passes for run in lora_pass.runs}
        return not slots.isdisjoint(self._embeddings) or not slots.isdisjoint(self._saved_embeddings)

    def adapt_logits(
        self,
        logits: Tensor,  # [num_rows, vocab_size] float32, changed in place
        hidden: Tensor,  # [num_rows, hidden_size], what the head was given
        segments: Segments,
    ) -> None:
        """Replace or change the logits of adapters that have a head of their own or LoRA for it."""
        if self._saved_heads:
            for start, end, slot, _ in _runs(segments):
                if (head := self._saved_heads.get(slot)) is not None:
                    logits[start:end] = head(padded_rows(hidden[start:end]))[: end - start]
        if self._head_slots:
            self._lora_add(logits, hidden.float(), segments, self._head)


def _add_embedding(rows: Tensor, ids: Tensor, lora: EmbeddingLoRA, scales: Tensor) -> None:
    delta = (padded_rows(lora.a_t[ids]) @ lora.b_t)[: len(ids)]
    sums = rows.float() + scales * delta.float()
    rows.copy_(sums if lora.dora is None else apply_dora(sums, lora.dora, scales))


def _runs(segments: Segments) -> Iterator[tuple[int, int, int, Tensor]]:
    """Yield every run's first row, end, slot and the rows' scales, [num_rows, 1] float32."""
    for lora_pass in segments.passes:
        for run in lora_pass.runs:
            yield run.start, run.end, run.slot, lora_pass.scales[run.start : run.end, None]


def _set(by_slot: dict[int, _Value], slot: int, value: _Value | None) -> None:
    if value is None:
        by_slot.pop(slot, None)
    else:
        by_slot[slot] = value
