"""LoRA of the embedding on a GPU: all runs of a pass in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.lora.add import check_tiles
from kernels.lora.embedding_lora_add import check
from kernels.lora.expand import apply_dora_terms
from kernels.lora.segments import Segments
from kernels.lora.tables import ENTRY_COLUMNS, LoRAModule

# Not yet tuned on a device; what it compiles to is bounded by test_embedding_lora_add.py.
ROW_BYTES_OF_BLOCK = 256
BLOCK_RANK = 16
NUM_WARPS = {16: 4, 32: 8, 64: 8}


@triton.jit(do_not_specialize=["first_entry", "slot_stride"])  # type: ignore[untyped-decorator]
def embedding_add_kernel(  # type: ignore[no-untyped-def]
    embedded_ptr,  # [num_rows, hidden_size], changed in place
    token_ids_ptr,  # [num_rows] int64
    table_ptr,  # [num_slots, slot_stride] int64
    tiles_ptr,  # [num_tiles, 4] int64: start, end, slot (-1: idle), expert
    scales_ptr,  # [num_rows] float32
    hidden_size,
    first_entry,
    slot_stride,
    ENTRY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ALIGNED: tl.constexpr,
    PDL: tl.constexpr,
):
    """embedded[row] += scale(row) A[slot(row)][token(row)] B[slot(row)]; program (tile, columns).

    Then the adapter's DoRA gain, if its table entry has the address of its terms. ALIGNED: the hidden size is
    a multiple of 16, so that 16 bytes of B and of the output are moved at a time.
    """
    tile_ptr = tiles_ptr + tl.program_id(0) * 4
    first_row = tl.load(tile_ptr)
    end_row = tl.load(tile_ptr + 1)
    slot = tl.load(tile_ptr + 2)
    has_adapter = slot >= 0
    entry_ptr = table_ptr + slot * slot_stride + first_entry * ENTRY
    a_address = tl.load(entry_ptr, mask=has_adapter, other=0)
    b_address = tl.load(entry_ptr + 1, mask=has_adapter, other=0)
    rank = tl.load(entry_ptr + 2, mask=has_adapter, other=0).to(tl.int32)
    dora_address = tl.load(entry_ptr + 4, mask=has_adapter, other=0)
    wait_for_inputs(PDL)
    if rank == 0:
        return
    a_ptr = a_address.to(tl.pointer_type(embedded_ptr.dtype.element_ty))
    b_ptr = b_address.to(tl.pointer_type(embedded_ptr.dtype.element_ty))
    if ALIGNED:
        b_ptr = tl.multiple_of(b_ptr, 16)

    rows = first_row + tl.arange(0, BLOCK_M)
    row_is_mine = rows < end_row
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_exists = columns < hidden_size
    mask = row_is_mine[:, None] & column_exists[None, :]
    embedded_ptrs = embedded_ptr + rows[:, None] * hidden_size + columns[None, :]
    before = tl.load(embedded_ptrs, mask=mask, other=0.0)
    tokens = tl.load(token_ids_ptr + rows, mask=row_is_mine, other=0)
    scales = tl.load(scales_ptr + rows, mask=row_is_mine, other=0.0)[:, None]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, rank, BLOCK_R):
        ranks = start + tl.arange(0, BLOCK_R)
        rank_exists = ranks < rank
        a = tl.load(
            a_ptr + tokens[:, None] * rank + ranks[None, :],
            mask=row_is_mine[:, None] & rank_exists[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + ranks[:, None].to(tl.int64) * hidden_size + columns[None, :],
            mask=rank_exists[:, None] & column_exists[None, :],
            other=0.0,
        )
        acc = tl.dot(a, b, acc, input_precision="ieee")

    total = before.to(tl.float32) + scales * acc
    if dora_address != 0:
        total = apply_dora_terms(total, scales, dora_address, hidden_size, columns, column_exists)
    tl.store(embedded_ptrs, total.to(before.dtype), mask=mask)


def embedding_lora_add_triton(
    embedded: Tensor, token_ids: Tensor, segments: Segments, module: LoRAModule
) -> None:
    """Compute `EmbeddingLoRAAdd` for segments with `block_rows`, which lie on the device."""
    check(embedded, token_ids, segments, module)
    block_out = ROW_BYTES_OF_BLOCK // embedded.element_size()
    for lora_pass in segments.passes:
        block_rows = check_tiles(lora_pass, embedded.shape[0], embedded.device)
        num_tiles = lora_pass.table.shape[0]
        if num_tiles == 0:
            continue
        embedding_add_kernel[num_tiles, triton.cdiv(module.out_features, block_out)](
            embedded,
            token_ids,
            module.table,
            lora_pass.table,
            lora_pass.scales,
            module.out_features,
            module.first_entry,
            module.table.stride(0),
            ENTRY=ENTRY_COLUMNS,
            BLOCK_M=block_rows,
            BLOCK_N=block_out,
            BLOCK_R=BLOCK_RANK,
            ALIGNED=module.is_aligned,
            num_warps=NUM_WARPS[block_rows],
            enable_fp_fusion=True,
            **dependent_launch(embedded.device),
        )
