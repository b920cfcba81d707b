from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.lora.tables import LoRASlice, LoRATable, PackedLoRA, Slice
from tests.unit.workers.engine.lora.adapter_writer import BASE, write_adapter
from workers.engine.lora.files.base import EMBEDDING, HEAD, ModuleShape, Vocabulary
from workers.engine.lora.files.validate import check_adapter
from workers.engine.lora.tables.adapter_weights import EmbeddingLoRA, VocabularyWeights, pack_adapter
from workers.engine.lora.tables.packed_slots import (
    PackedAdapter,
    PackedKey,
    adapter_lora,
    module_name,
    packed_shapes,
)


def _packed(folder: Path, rank: int, targets: tuple[str, ...]) -> PackedAdapter:
    checked = check_adapter(write_adapter(folder, rank=rank, targets=targets), base=BASE, max_rank=64)
    return pack_adapter(checked, shapes=BASE.shapes, layout=BASE.layout, dtype=torch.float32).modules


def _table(num_slots: int) -> LoRATable:
    return LoRATable(packed_shapes(BASE.shapes, BASE.layout, torch.float32), num_slots)


def _point(table: LoRATable, slot: int, adapter: PackedAdapter) -> None:
    table.point(slot, table.describe(adapter_lora(adapter)))


def test_behaviour_04_a_narrow_adapter_leaves_nothing_of_the_wide_one_before_it(tmp_path: Path) -> None:
    table, fresh = _table(2), _table(2)
    wide = _packed(tmp_path / "wide", 64, ("q_proj", "k_proj", "o_proj", "up_proj", "down_proj"))
    narrow = _packed(tmp_path / "narrow", 2, ("v_proj",))

    _point(table, 1, wide)
    _point(table, 1, narrow)

    _point(fresh, 1, narrow)
    assert torch.equal(table.addresses, fresh.addresses)
    for layer in range(2):
        qkv = table.module(module_name(layer, "qkv"))
        assert [qkv.weights(slot) for slot in (0, 1)] == [None, narrow[PackedKey(layer, "qkv")]]
        assert qkv.table[1, qkv.first_entry : qkv.first_entry + 3, 2].tolist() == [0, 0, 2]
        for module in ("o", "gate_up", "down"):
            other = table.module(module_name(layer, module))
            assert [other.weights(slot) for slot in (0, 1)] == [None, None]


def test_behaviour_18_pointing_copies_nothing_and_keeps_the_table_itself(tmp_path: Path) -> None:
    table = _table(1)
    down, address = table.module(module_name(0, "down")), table.addresses.data_ptr()
    adapter = _packed(tmp_path, 4, ("down_proj",))
    weights = adapter[PackedKey(0, "down")]

    _point(table, 0, adapter)

    assert table.module(module_name(0, "down")) is down
    assert down.weights(0) is weights
    assert down.table[0, down.first_entry, :3].tolist() == [
        weights.a.data_ptr(),
        weights.slices[0].b_t.data_ptr(),
        4,
    ]
    assert (down.table.data_ptr(), table.addresses.data_ptr()) == (address, address)
    table.clear(0)
    assert down.weights(0) is None
    assert not table.addresses.any()


def test_experts_share_a_module_in_which_each_has_its_own_entries() -> None:
    table, weights = _expert_table(num_slots=2), _expert_weights()

    _point(table, 1, {PackedKey(0, "down", 2): weights})

    down = table.module(module_name(0, "down"))
    assert [down.weights(1, expert) for expert in range(3)] == [None, None, weights]
    assert [down.weights(0, expert) for expert in range(3)] == [None] * 3
    assert table.addresses[:, :, 0].tolist() == [[0, 0, 0], [0, 0, weights.a.data_ptr()]]
    table.clear(1)
    assert not table.addresses.any()


def test_an_adapter_of_one_expert_leaves_nothing_of_one_of_all_experts() -> None:
    table = _expert_table(num_slots=2)
    neighbour, wide = ({PackedKey(0, "down", expert): _expert_weights() for expert in range(3)} for _ in "12")
    narrow = _expert_weights()
    _point(table, 0, neighbour)
    _point(table, 1, wide)

    _point(table, 1, {PackedKey(0, "down", 1): narrow})

    kept = [neighbour[PackedKey(0, "down", expert)] for expert in range(3)]
    down = table.module(module_name(0, "down"))
    assert [down.weights(1, expert) for expert in range(3)] == [None, narrow, None]
    assert table.addresses[0, :, 0].tolist() == [one.a.data_ptr() for one in kept]
    assert table.addresses[1, :, 0].tolist() == [0, narrow.a.data_ptr(), 0]


def test_embedding_and_head_are_modules_of_the_same_row_the_head_in_float32() -> None:
    vocabulary = Vocabulary(size=10, hidden_size=4, is_tied=False)
    shapes = packed_shapes(BASE.shapes, BASE.layout, torch.bfloat16, vocabulary)
    table = LoRATable(shapes, 1)
    head = PackedLoRA(torch.ones(16, 4), (LoRASlice(Slice(0, 10), Slice(0, 16), torch.ones(16, 10)),))
    embedding = EmbeddingLoRA(
        torch.ones(10, 3, dtype=torch.bfloat16), torch.ones(3, 4, dtype=torch.bfloat16), None
    )
    weights = VocabularyWeights(embedding, head)

    table.point(0, table.describe(adapter_lora({}, weights.packed)))

    module, lookup = table.module(HEAD), table.module(EMBEDDING)
    assert (module.dtype, module.weights(0)) == (torch.float32, head)
    assert table.addresses[0, -1, 0] == head.a.data_ptr()
    assert (lookup.dtype, lookup.is_lookup, lookup.weights(0)) == (torch.bfloat16, True, embedding.packed)
    assert table.addresses[0, -2].tolist() == [embedding.a_t.data_ptr(), embedding.b_t.data_ptr(), 3, 0, 0]


def test_an_embedding_of_another_vocabulary_is_refused_with_both_shapes() -> None:
    vocabulary = Vocabulary(size=10, hidden_size=4, is_tied=False)
    table = LoRATable(packed_shapes(BASE.shapes, BASE.layout, torch.float32, vocabulary), 1)
    weights = VocabularyWeights(EmbeddingLoRA(torch.ones(9, 3), torch.ones(3, 4), None))

    with pytest.raises(
        ValueError, match=r"A is \(9, 3\) and B \(3, 4\) .* must be \[10, rank\] and \(3, 4\)"
    ):
        table.describe(adapter_lora({}, weights.packed))


def _expert_table(num_slots: int) -> LoRATable:
    shapes = {f"experts.{expert}.down": ModuleShape(4, 6) for expert in range(3)}
    layout = {PackedKey(0, "down", expert): (f"experts.{expert}.down",) for expert in range(3)}
    return LoRATable(packed_shapes(shapes, layout, torch.float32), num_slots)


def _expert_weights() -> PackedLoRA:
    return PackedLoRA(torch.ones(16, 4), (LoRASlice(Slice(0, 6), Slice(0, 16), torch.ones(16, 6)),))
