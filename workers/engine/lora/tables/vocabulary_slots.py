"""What each slot's adapter does to embedding and head; a step without such adapters pays nothing for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from kernels.linear.logits import Head
from kernels.linear.row_padding import padded_rows
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRATable
from kernels.registry import Kernels
from workers.engine.lora.files.base import EMBEDDING, HEAD
from workers.engine.lora.tables.adapter_weights import VocabularyWeights

_Value = TypeVar("_Value")


class VocabularySlots:
    """Slots for embedding and head; whole ones come once per step, so that a loop over runs costs little."""

    def __init__(self, table: LoRATable, kernels: Kernels) -> None:
        """`table` has LoRA of embedding and head."""
        # Packing a head would hold up a step, and take its memory twice.
        self._head_kernel = kernels.logits._replace(packed=None)
        self._lora_add = kernels.lora_add_float32
        self._embedding_lora_add = kernels.embedding_lora_add
        self._embedding, self._head = table.module(EMBEDDING), table.module(HEAD)
        self._embedding_slots: set[int] = set()  # whose adapters have LoRA of the embedding
        self._head_slots: set[int] = set()  # the same of the head
        self._saved_embeddings: dict[int, Tensor] = {}
        self._saved_heads: dict[int, Head] = {}

    def point(self, slot: int, weights: VocabularyWeights) -> None:
        """Make `slot` serve an adapter whose row the table has; nothing of the last one stays."""
        for slots, lora in ((self._embedding_slots, weights.embedding), (self._head_slots, weights.head)):
            slots.discard(slot)
            if lora is not None:
                slots.add(slot)
        saved_head = None if weights.saved_head is None else Head(weights.saved_head, self._head_kernel)
        _set(self._saved_embeddings, slot, weights.saved_embedding)
        _set(self._saved_heads, slot, saved_head)

    def adapt_embedded(
        self,
        embedded: Tensor,  # [num_rows, hidden_size], changed in place
        token_ids: Tensor,  # [num_rows] int64
        segments: Segments,
    ) -> None:
        """Replace or change the rows of adapters that have an embedding of their own or LoRA for it."""
        if self._saved_embeddings:
            for start, end, slot in _runs(segments):
                if (saved := self._saved_embeddings.get(slot)) is not None:
                    embedded[start:end] = saved[token_ids[start:end]]
        if self._embedding_slots or _is_captured(embedded):
            self._embedding_lora_add(embedded, token_ids, segments, self._embedding)

    def replaces_embedded(self, segments: Segments) -> bool:
        """Whether some row's adapter has an embedding of its own."""
        if not self._saved_embeddings:
            return False
        slots = {run.slot for lora_pass in segments.passes for run in lora_pass.runs}
        return not slots.isdisjoint(self._saved_embeddings)

    def adapt_logits(
        self,
        logits: Tensor,  # [num_rows, vocab_size] float32, changed in place
        hidden: Tensor,  # [num_rows, hidden_size], what the head was given
        segments: Segments,
    ) -> None:
        """Replace or change the logits of adapters that have a head of their own or LoRA for it."""
        if self._saved_heads:
            for start, end, slot in _runs(segments):
                if (head := self._saved_heads.get(slot)) is not None:
                    logits[start:end] = head(padded_rows(hidden[start:end]))[: end - start]
        if self._head_slots:
            self._lora_add(logits, hidden.float(), segments, self._head)


def _is_captured(tensor: Tensor) -> bool:
    """Whether launches are captured, to be replayed with adapters that are not here yet."""
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _runs(segments: Segments) -> Iterator[tuple[int, int, int]]:
    """Yield every run's first row, end and slot."""
    for lora_pass in segments.passes:
        for run in lora_pass.whole_runs():
            yield run.start, run.end, run.slot


def _set(by_slot: dict[int, _Value], slot: int, value: _Value | None) -> None:
    if value is None:
        by_slot.pop(slot, None)
    else:
        by_slot[slot] = value
