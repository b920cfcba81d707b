"""Embedding and head of the slots' adapters: nothing of a step is asked of the device, runs stay whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.linear.logits import HeadKernel
from kernels.lora.segments import Segments, SlotScale
from kernels.lora.tables import LoRASlice, LoRATable, PackedLoRA, Slice
from kernels.registry import Kernels, build
from workers.engine.lora.files.base import Vocabulary
from workers.engine.lora.tables.adapter_weights import EmbeddingLoRA, VocabularyWeights
from workers.engine.lora.tables.packed_slots import adapter_lora, packed_shapes
from workers.engine.lora.tables.vocabulary_slots import VocabularySlots

SIZE, HIDDEN = 50, 32
RUNS = [(40, (SlotScale(0),)), (3, (SlotScale(1, 0.5),)), (2, ()), (1, (SlotScale(2),))]


def _lora() -> VocabularyWeights:
    dora = torch.rand(5, HIDDEN) + 1.0
    part = LoRASlice(Slice(0, SIZE), Slice(0, 16), torch.randn(16, SIZE))
    return VocabularyWeights(
        EmbeddingLoRA(torch.randn(SIZE, 4), torch.randn(4, HIDDEN), dora),
        PackedLoRA(torch.randn(16, HIDDEN), (part,)),
    )


def _saved(device: str) -> VocabularyWeights:
    embedding, head = (torch.randn(SIZE, HIDDEN, device=device) for _ in range(2))
    return VocabularyWeights(saved_embedding=embedding, saved_head=head)


def _slots(kernels: Kernels) -> VocabularySlots:
    """Slots 0 and 2 have whole modules, slot 1 has LoRA."""
    vocabulary = Vocabulary(SIZE, HIDDEN, is_tied=False)
    table = LoRATable(packed_shapes({}, {}, torch.float32, vocabulary), 3)
    slots = VocabularySlots(table, kernels)
    for slot, weights in enumerate((_saved(kernels.device), _lora(), _saved(kernels.device))):
        table.point(slot, table.describe(adapter_lora({}, weights.packed)))
        slots.point(slot, weights)
    return slots


def _counted(kernel: HeadKernel, rows: list[int]) -> HeadKernel:
    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        rows.append(x.shape[0])
        return kernel.multiply(x, weight)

    return kernel._replace(multiply=multiply)


@pytest.mark.parametrize("block_rows", [None, 16])
def test_whole_modules_cost_one_call_for_each_run_however_it_is_cut(block_rows: int | None) -> None:
    rows: list[int] = []
    kernels = build("cpu", torch.float32)
    slots = _slots(replace(kernels, logits=_counted(kernels.logits, rows)))
    hidden, logits = torch.randn(46, HIDDEN), torch.zeros(46, SIZE)

    slots.adapt_logits(logits, hidden, Segments.from_runs(RUNS, block_rows=block_rows))

    assert rows == [40, 4]  # one row is multiplied with three of padding
    assert (logits[:43] != 0).all()
    assert not logits[43:45].any()


def test_nothing_is_asked_of_tensors_without_contents() -> None:
    """What would make the host wait for a device raises here."""
    slots = _slots(build("meta", torch.float32))
    segments = Segments.from_runs(RUNS, block_rows=16, num_tiles=12).to("meta")

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, device="meta")

    slots.adapt_embedded(empty(46, HIDDEN), empty(46).long(), segments)
    slots.adapt_logits(empty(46, SIZE), empty(46, HIDDEN), segments)


def test_a_slot_given_to_another_adapter_keeps_nothing_of_the_last_one() -> None:
    slots = _slots(build("cpu", torch.float32))
    for slot in range(3):
        slots.point(slot, VocabularyWeights())
    embedded, logits = torch.randn(46, HIDDEN), torch.randn(46, SIZE)
    before = embedded.clone(), logits.clone()

    segments = Segments.from_runs(RUNS)
    slots.adapt_embedded(embedded, torch.zeros(46, dtype=torch.int64), segments)
    slots.adapt_logits(logits, torch.randn(46, HIDDEN), segments)

    assert torch.equal(embedded, before[0])
    assert torch.equal(logits, before[1])
