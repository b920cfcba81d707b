"""LoRA of the embedding: on a CPU at every level, refusals, and what its Triton kernel compiles to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import registry
from kernels.lora import triton_embedding_add
from kernels.lora.embedding_lora_add import embedding_lora_add_by_row
from kernels.lora.segments import Segments, SlotScale
from kernels.lora.triton_embedding_add import embedding_add_kernel, embedding_lora_add_triton
from tests.unit.kernels.compiled import ARCHITECTURES, MAX_SHARED_BYTES, Recorder, compile_launch, launch_on
from tests.unit.kernels.conftest import Resolve
from tests.unit.kernels.embedding_cases import EmbeddingCase, make_embedding_case

RUNS = [
    (3, (SlotScale(0, 0.5),)),
    (2, ()),
    (4, (SlotScale(1, -2.0),)),
    (1, (SlotScale(3, 0.5), SlotScale(0))),
    (2, (SlotScale(2),)),
]


@pytest.fixture
def case() -> EmbeddingCase:
    return make_embedding_case(ranks=[4, 3, 0, 20], runs=RUNS, hidden_size=24, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_gets_its_tokens_product_and_base_rows_keep_their_bits(
    dtype: torch.dtype, resolve: Resolve
) -> None:
    case = make_embedding_case(ranks=[4, 3, 0, 20], runs=RUNS, hidden_size=24, dtype=dtype)
    before, exact = case.embedded.clone(), case.exact()

    resolve("embedding_lora_add", dtype)(case.embedded, case.token_ids, case.segments, case.module)

    tolerance = 1e-5 if dtype is torch.float32 else 6e-2
    torch.testing.assert_close(case.embedded.double(), exact, atol=tolerance, rtol=tolerance)
    assert torch.equal(case.embedded[[3, 4, 10, 11]], before[[3, 4, 10, 11]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_by_row_a_token_gets_the_same_bits_in_every_run(dtype: torch.dtype) -> None:
    def embed(runs: list[tuple[int, tuple[SlotScale, ...]]], token_ids: Tensor, embedded: Tensor) -> Tensor:
        case = make_embedding_case(ranks=[4, 3, 0, 20], runs=runs, hidden_size=24, dtype=dtype)
        embedding_lora_add_by_row(embedded, token_ids, case.segments, case.module)
        return embedded

    case = make_embedding_case(ranks=[4, 3, 0, 20], runs=RUNS, hidden_size=24, dtype=dtype)
    exact, before = case.exact(), case.embedded.clone()
    whole = embed(RUNS, case.token_ids, before.clone())

    tolerance = 1e-5 if dtype is torch.float32 else 6e-2
    torch.testing.assert_close(whole.double(), exact, atol=tolerance, rtol=tolerance)
    alone = [(1, RUNS[2][1])]
    for row in range(5, 9):
        mine = slice(row, row + 1)
        assert torch.equal(embed(alone, case.token_ids[mine], before[mine].clone()), whole[mine])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "block_rows", "hidden_size", "max_registers"),
    [
        (torch.bfloat16, 16, 4096, 96),
        (torch.float16, 64, 4096, 232),
        (torch.float32, 16, 4096, 96),
        (torch.bfloat16, 16, 131, 255),
    ],
)
def test_what_is_launched_compiles_without_spills_and_moves_rows_in_whole_words(
    arch: int,
    dtype: torch.dtype,
    block_rows: int,
    hidden_size: int,
    max_registers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = make_embedding_case(
        ranks=[8], runs=[(2, (SlotScale(0),))], hidden_size=hidden_size, dtype=dtype, block_rows=block_rows
    )
    launch_on(arch, monkeypatch)
    recorder = Recorder()
    monkeypatch.setattr(triton_embedding_add, "embedding_add_kernel", recorder)
    embedding_lora_add_triton(case.embedded, case.token_ids, case.segments, case.module)

    compiled = compile_launch(embedding_add_kernel, recorder.launches[0], arch=arch, tmp_path=tmp_path)

    assert compiled.stack_bytes == 0
    assert compiled.num_registers <= max_registers
    assert compiled.shared_bytes <= MAX_SHARED_BYTES
    # A token's row of A has any rank: it is read number by number, and is a few hundred bytes.
    assert hidden_size == 131 or compiled.num_narrow <= block_rows * 16 // 32
    assert compiled.read_before_wait == (None if arch < 90 else {"tiles_ptr", "table_ptr"})


def test_a_pass_that_is_not_cut_is_refused_by_the_gpus_kernel(case: EmbeddingCase) -> None:
    with pytest.raises(ValueError, match="build its segments with block_rows=16"):
        embedding_lora_add_triton(case.embedded, case.token_ids, case.segments, case.module)


def test_inputs_that_do_not_fit_are_refused_with_their_values(case: EmbeddingCase, resolve: Resolve) -> None:
    add, other = resolve("embedding_lora_add", torch.float32), case.table.module("other")

    with pytest.raises(ValueError, match=r"embedded is \(12, 23\) .*contiguous \(12, 24\)"):
        add(torch.zeros(12, 23), case.token_ids, case.segments, case.module)
    with pytest.raises(ValueError, match=r"token_ids are \(12,\) torch.int32; give contiguous int64 \(12,\)"):
        add(case.embedded, case.token_ids.int(), case.segments, case.module)
    with pytest.raises(ValueError, match=r"embedded is torch.float16 .* adapters torch.float32"):
        add(case.embedded.half(), case.token_ids, case.segments, case.module)
    with pytest.raises(ValueError, match="'other' is no embedding; use lora_add"):
        add(torch.zeros(12, 4), case.token_ids, case.segments, other)


def test_tensors_without_contents_are_checked_only(case: EmbeddingCase) -> None:
    add = registry.resolve("embedding_lora_add", "meta", torch.float32, "meta")

    add(case.embedded.to("meta"), case.token_ids.to("meta"), case.segments.to("meta"), case.module)

    with pytest.raises(ValueError, match=r"need a contiguous \(3, 24\)"):
        add(case.embedded, case.token_ids, Segments.from_slots([0] * 3), case.module)
