"""The quantised product on a GPU: few rows multiply codes as they are read, many a tile spread out before.

Up to MAX_ROWS rows, what the product waits for is the codes, which it should read once: 0.54 bytes a weight
with 4 bits in groups of 128, 0.56 as NF4. A program takes at most 64 rows, so that a decode step spreads each
code out once. Where outputs are few, columns are split, and the splits summed in their order; how many there
are follows from the module and the tile. Spreading out costs about four instructions a weight, with a table
eight: near what an H100 has time for at the rate of its memory. More rows wait for multiplications: they get
plain tiles, made in memory that its cache holds, and cuBLAS.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.linear.quantized_linear import quantized_linear_meta
from kernels.linear.quantized_weight import QuantizedWeight
from kernels.linear.triton_codes import Coding, columns_of, load_blocks, numbers, prefetch_codes, tensors_of
from kernels.linear.triton_look_up import load_words
from kernels.linear.triton_spread import spread_rows

MAX_ROWS, MAX_SLOW_ROWS = 256, 32
"""So many decode in one captured step. Slow are float32, and blocks that end within a piece of a row."""
MAX_SPLITS, MIN_SPLIT, SPLIT_MULTIPLE = 8, 512, 128
BLOCK_OF_SUM = 1024


class Tile(NamedTuple):
    """What a program multiplies, and with what."""

    rows: int
    outputs: int
    turn: int  # columns of x that a turn of its loop takes
    num_warps: int
    num_stages: int  # turns that are on their way at once
    num_programs: int  # that columns are split for


# Not yet tuned on a device: three programs of four warps on each multiprocessor of an H100, or one of eight.
# What they compile to is bounded by test_triton_quantized_linear.py. Up to 32 rows columns are split alike.
TILES = (Tile(16, 64, 128, 4, 4, 384), Tile(32, 64, 128, 4, 4, 384), Tile(64, 128, 128, 8, 3, 160))
TILES_OF_8_BITS = (*TILES[:2], Tile(64, 128, 64, 8, 3, 160))
SLOW_TILES = (Tile(16, 64, 32, 4, 1, 384), Tile(32, 64, 32, 4, 1, 384))


def split_width(out_features: int, in_features: int, tile: Tile) -> int:
    """Return how many columns one program multiplies; a multiple of every turn."""
    num_tiles = triton.cdiv(out_features, tile.outputs)
    wanted = min(MAX_SPLITS, triton.cdiv(tile.num_programs, num_tiles), max(1, in_features // MIN_SPLIT))
    multiples: int = triton.cdiv(triton.cdiv(in_features, wanted), SPLIT_MULTIPLE)
    return multiples * SPLIT_MULTIPLE


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def quantized_linear_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # [num_rows, out_width], columns from `first_out` on are written; with splits not at all
    planes_ptr,  # [num_splits, num_rows, out_features] float32; without splits not at all
    x_ptr,  # [num_rows, in_features]
    codes_ptr,  # [out_features, row_bytes] uint8
    scales_ptr,  # [num_blocks] float32
    zeros_ptr,  # [num_blocks] uint8; not read unless HAS_ZEROS
    table_ptr,  # [16] float32; not read unless HAS_TABLE
    bias_ptr,  # [out_features]; not read unless HAS_BIAS
    num_rows,
    in_features,
    out_features,
    row_bytes,
    out_width,
    first_out,
    SPLIT: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
    WHOLE: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    PERMUTES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    TURN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[row, n] = sum over k of x[row, k] W[n, k], + bias[n]; program (outputs, rows, split of k).

    W[n, k] = (number(code) - zero) scale, rounded to x's dtype. A byte's two codes stand 16 columns apart:
    the lower ones of a piece are one product, the upper ones another, each with the columns of x it meets.
    EVEN: in_features is a multiple of TURN.
    """
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    output_exists = outputs < out_features
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_exists = rows < num_rows
    first = tl.program_id(2) * SPLIT
    end = tl.minimum(first + SPLIT, in_features)
    HALVES: tl.constexpr = 8 // BITS
    bytes_at = tl.arange(0, PIECE // HALVES)
    code_rows = codes_ptr + outputs.to(tl.int64) * row_bytes
    x_rows = x_ptr + rows * in_features
    # Where the blocks of an output begin, and how far into the first of them its row does.
    if WHOLE:
        first_blocks = outputs * (in_features // BLOCK)
        phases = tl.zeros_like(outputs)
    else:
        positions = outputs.to(tl.int64) * in_features
        first_blocks = positions // BLOCK
        phases = (positions % BLOCK).to(tl.int32)
    words = ()
    if PERMUTES:
        words = load_words(table_ptr)
    prefetch_codes(codes_ptr, outputs, out_features, first // HALVES, row_bytes, LINES=2, PDL=PDL)
    wait_for_inputs(PDL)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for turn in range(first, end, TURN):
        for step in tl.static_range(0, TURN, PIECE):
            start = turn + step
            places = start // HALVES + bytes_at
            is_code = output_exists[None, :] & (EVEN | (places < row_bytes))[:, None]
            codes = tl.load(code_rows[None, :] + places[:, None], mask=is_code, other=0)
            scales, zeros = 0.0, 0.0
            if WHOLE:
                scales, zeros = load_blocks(
                    scales_ptr,
                    zeros_ptr,
                    first_blocks + start // BLOCK,
                    output_exists & (EVEN | (start < in_features)),
                    HAS_TABLE,
                    HAS_ZEROS,
                )
                scales, zeros = scales[None, :], zeros[None, :]
            values = numbers(codes, words, table_ptr, BITS, HAS_TABLE, PERMUTES)
            for half in tl.static_range(HALVES):
                columns = start + columns_of(bytes_at, half, BITS)
                exists = EVEN | (columns < in_features)
                is_x = row_exists[:, None] & exists[None, :]
                x = tl.load(x_rows[:, None] + columns[None, :], mask=is_x, other=0.0)
                if not WHOLE:
                    scales, zeros = load_blocks(
                        scales_ptr,
                        zeros_ptr,
                        first_blocks[None, :] + (phases[None, :] + columns[:, None]) // BLOCK,
                        output_exists[None, :] & exists[:, None],
                        HAS_TABLE,
                        HAS_ZEROS,
                    )
                weights = (values[half] - zeros) * scales
                acc = tl.dot(x, weights.to(x.dtype), acc, input_precision="ieee")
    mask = row_exists[:, None] & output_exists[None, :]
    if IS_SPLIT:
        plane_rows = (tl.program_id(2) * num_rows + rows).to(tl.int64) * out_features
        tl.store(planes_ptr + plane_rows[:, None] + outputs[None, :], acc, mask=mask)
    else:
        if HAS_BIAS:
            acc += tl.load(bias_ptr + outputs, mask=output_exists, other=0.0).to(tl.float32)[None, :]
        out_rows = out_ptr + rows.to(tl.int64) * out_width + first_out
        tl.store(out_rows[:, None] + outputs[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def sum_splits_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # [num_rows, out_width], columns from `first_out` on are written
    planes_ptr,  # [NUM_SPLITS, num_rows, out_features] float32
    bias_ptr,  # [out_features]; not read unless HAS_BIAS
    num_rows,
    out_features,
    out_width,
    first_out,
    NUM_SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[row, block b] = the planes' sum in their order, + bias; program (row, b)."""
    row = tl.program_id(0).to(tl.int64)
    outputs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = outputs < out_features
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    bias = acc
    if HAS_BIAS:
        bias = tl.load(bias_ptr + outputs, mask=exists, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    for split in tl.static_range(NUM_SPLITS):
        plane_row = planes_ptr + (split * num_rows + row) * out_features
        acc += tl.load(plane_row + outputs, mask=exists, other=0.0)
    out = (acc + bias).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * out_width + first_out + outputs, out, mask=exists)


def quantized_linear_triton(
    out: Tensor,  # [num_rows, all out_features], columns `first` and on are written
    first: int,
    x: Tensor,  # [num_rows, in_features], columns in the codes' order
    weight: QuantizedWeight,
    bias: Tensor | None,  # [out_features], in the dtype of x
) -> None:
    """Compute `quantized_linear_reference`; ValueError for tensors that the kernels would misread."""
    check(out, first, x, weight, bias)
    num_rows, coding = x.shape[0], Coding.of(weight)
    is_slow = not coding.is_whole or x.dtype is torch.float32
    if num_rows > (MAX_SLOW_ROWS if is_slow else MAX_ROWS):
        _multiply_spread(out, first, x, weight, bias)
    elif num_rows:
        tiles = SLOW_TILES if is_slow else TILES_OF_8_BITS if coding.bits == 8 else TILES
        tile = next((one for one in tiles if one.rows >= num_rows), tiles[-1])
        _multiply_codes(out, first, x, weight, bias, coding.within(tile.turn), tile)


def _multiply_codes(
    out: Tensor,
    first: int,
    x: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None,
    coding: Coding,
    tile: Tile,
) -> None:
    num_rows, (out_features, row_bytes) = x.shape[0], weight.codes.shape
    split = split_width(out_features, weight.in_features, tile)
    num_splits = triton.cdiv(weight.in_features, split)
    is_split = num_splits > 1
    planes = x.new_empty((num_splits, num_rows, out_features), dtype=torch.float32) if is_split else out
    given_bias = out if bias is None else bias
    grid = triton.cdiv(out_features, tile.outputs), triton.cdiv(num_rows, tile.rows), num_splits
    quantized_linear_kernel[grid](
        out,
        planes,
        x,
        *tensors_of(weight),
        given_bias,
        num_rows,
        weight.in_features,
        out_features,
        row_bytes,
        out.shape[1],
        first,
        SPLIT=split,
        IS_SPLIT=is_split,
        **coding.constants(),
        HAS_BIAS=bias is not None,
        EVEN=weight.in_features % tile.turn == 0,
        TURN=tile.turn,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.outputs,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
        **dependent_launch(x.device),
    )
    if is_split:
        sum_splits_kernel[num_rows, triton.cdiv(out_features, BLOCK_OF_SUM)](
            out,
            planes,
            given_bias,
            num_rows,
            out_features,
            out.shape[1],
            first,
            NUM_SPLITS=num_splits,
            HAS_BIAS=bias is not None,
            BLOCK=BLOCK_OF_SUM,
            **dependent_launch(x.device),
        )


def _multiply_spread(
    out: Tensor, first: int, x: Tensor, weight: QuantizedWeight, bias: Tensor | None
) -> None:
    for start, end, rows in spread_rows(weight, x.dtype):
        part = out[:, first + start : first + end]
        if bias is None:
            torch.mm(x, rows.t(), out=part)
        else:
            torch.addmm(bias[start:end], x, rows.t(), out=part)


def check(out: Tensor, first: int, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> None:
    """Raise ValueError, with the values, unless shapes, dtypes, devices and strides are the kernels'."""
    quantized_linear_meta(out, first, x, weight, bias)
    if out.dtype is not x.dtype or (bias is not None and bias.dtype is not x.dtype):
        given = None if bias is None else bias.dtype
        raise ValueError(f"x is {x.dtype}, out {out.dtype}, the bias {given}; give one dtype")
    tensors = [out, x, *tensors_of(weight), *(() if bias is None else (bias,))]
    if not all(one.is_contiguous() for one in tensors):
        raise ValueError(f"strides are {[one.stride() for one in tensors]}; give contiguous tensors")
    if any(one.device != x.device for one in tensors):
        raise ValueError(
            f"x is on {x.device}, the weight on {weight.codes.device}; give QuantizedWeight.to(device)"
        )
