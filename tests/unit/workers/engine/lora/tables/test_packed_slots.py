from __future__ import annotations

from pathlib import Path

import torch

from kernels.lora.tables import LoRASlice, PackedLoRA, Slice
from tests.unit.workers.engine.lora.adapter_writer import BASE, write_adapter
from workers.engine.lora.files.base import ModuleShape
from workers.engine.lora.files.validate import check_adapter
from workers.engine.lora.tables.adapter_weights import PackedAdapter, pack_adapter
from workers.engine.lora.tables.packed_slots import PackedKey, PackedSlotTables


def _packed(folder: Path, rank: int, targets: tuple[str, ...]) -> PackedAdapter:
    checked = check_adapter(write_adapter(folder, rank=rank, targets=targets), base=BASE, max_rank=64)
    return pack_adapter(checked, shapes=BASE.shapes, layout=BASE.layout, dtype=torch.float32).modules


def test_behaviour_04_a_narrow_adapter_leaves_nothing_of_the_wide_one_before_it(tmp_path: Path) -> None:
    tables = PackedSlotTables(BASE.shapes, BASE.layout, 2)
    wide = _packed(tmp_path / "wide", 64, ("q_proj", "k_proj", "o_proj", "up_proj", "down_proj"))
    narrow = _packed(tmp_path / "narrow", 2, ("v_proj",))

    tables.point(1, tables.describe(wide))
    tables.point(1, tables.describe(narrow))

    for layer in range(2):
        assert tables.table(layer, "qkv").entries == [None, narrow[PackedKey(layer, "qkv")]]
        for module in ("o", "gate_up", "down"):
            assert tables.table(layer, module).entries == [None, None]


def test_behaviour_18_pointing_copies_nothing_and_keeps_the_table_itself(tmp_path: Path) -> None:
    tables = PackedSlotTables(BASE.shapes, BASE.layout, 1)
    table = tables.table(0, "down")
    adapter = _packed(tmp_path, 4, ("down_proj",))

    tables.point(0, tables.describe(adapter))

    assert tables.table(0, "down") is table
    assert table.entries[0] is adapter[PackedKey(0, "down")]
    tables.clear(0)
    assert table.entries == [None]


def test_experts_share_a_table_in_which_every_expert_has_its_own_slots() -> None:
    tables = _expert_tables(num_slots=2)
    weights = _expert_weights()

    tables.point(1, tables.describe({PackedKey(0, "down", 2): weights}))

    assert tables.table(0, "down").entries == [None, None, None, None, None, weights]
    tables.clear(1)
    assert tables.table(0, "down").entries == [None] * 6


def test_an_adapter_of_one_expert_leaves_nothing_of_one_of_all_experts() -> None:
    tables = _expert_tables(num_slots=2)
    neighbour, wide = ({PackedKey(0, "down", expert): _expert_weights() for expert in range(3)} for _ in "12")
    narrow = _expert_weights()
    tables.point(0, tables.describe(neighbour))
    tables.point(1, tables.describe(wide))

    tables.point(1, tables.describe({PackedKey(0, "down", 1): narrow}))

    table = tables.table(0, "down")
    kept = [neighbour[PackedKey(0, "down", expert)] for expert in range(3)]
    assert table.entries == [kept[0], None, kept[1], narrow, kept[2], None]
    addresses = [0 if entry is None else entry.a.data_ptr() for entry in table.entries]
    assert table.table[:, 0, 0].tolist() == addresses


def _expert_tables(num_slots: int) -> PackedSlotTables:
    shapes = {f"experts.{expert}.down": ModuleShape(4, 6) for expert in range(3)}
    layout = {PackedKey(0, "down", expert): (f"experts.{expert}.down",) for expert in range(3)}
    return PackedSlotTables(shapes, layout, num_slots)


def _expert_weights() -> PackedLoRA:
    return PackedLoRA(torch.ones(16, 4), (LoRASlice(Slice(0, 6), Slice(0, 16), torch.ones(16, 6)),))
