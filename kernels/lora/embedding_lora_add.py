"""LoRA of the embedding: a token's row of A times B, upon the rows that the base looked up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.linear.row_padding import padded_rows
from kernels.lora.reference import adapted_rows, apply_dora
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule, PackedLoRA

EmbeddingLoRAAdd = Callable[[Tensor, Tensor, Segments, LoRAModule], None]
"""Called with embedded [num_rows, hidden_size], token_ids [num_rows] int64, segments and a lookup module.

Computes embedded += scale A[token] B per row and adapter of the row, then applies the adapter's DoRA gain, if
it has one. Token ids must be inside the vocabulary.
"""


def check(embedded: Tensor, token_ids: Tensor, segments: Segments, module: LoRAModule) -> None:
    """Raise ValueError, with the values, for inputs a kernel would misread."""
    rows = segments.num_rows
    if tuple(embedded.shape) != (rows, module.out_features) or not embedded.is_contiguous():
        raise ValueError(
            f"embedded is {tuple(embedded.shape)} with strides {embedded.stride()}; the segments and the "
            f"module need a contiguous {(rows, module.out_features)}"
        )
    if (
        tuple(token_ids.shape) != (rows,)
        or token_ids.dtype is not torch.int64
        or not token_ids.is_contiguous()
    ):
        raise ValueError(
            f"token_ids are {tuple(token_ids.shape)} {token_ids.dtype}; give contiguous int64 {(rows,)}"
        )
    if embedded.dtype is not module.dtype or embedded.device != token_ids.device:
        raise ValueError(
            f"embedded is {embedded.dtype} on {embedded.device}, token_ids are on {token_ids.device} and the "
            f"adapters {module.dtype}; they must agree"
        )
    if not module.is_lookup:
        raise ValueError(f"{module.name!r} is no embedding; use lora_add")


def embedding_lora_add_reference(
    embedded: Tensor,  # [num_rows, hidden_size], changed in place
    token_ids: Tensor,  # [num_rows] int64
    segments: Segments,
    module: LoRAModule,
) -> None:
    """Compute `EmbeddingLoRAAdd` run by run."""
    check(embedded, token_ids, segments, module)
    for rows, weights, scales in adapted_rows(segments, module):
        _add_run(embedded[rows], token_ids[rows], weights, scales)


def embedding_lora_add_by_row(
    embedded: Tensor, token_ids: Tensor, segments: Segments, module: LoRAModule
) -> None:
    """Compute `embedding_lora_add_reference` one row at a time: its bits cannot depend on the batch."""
    check(embedded, token_ids, segments, module)
    for rows, weights, scales in adapted_rows(segments, module, one_by_one=True):
        _add_run(embedded[rows], token_ids[rows], weights, scales)


def _add_run(
    rows: Tensor,  # [run_rows, hidden_size], changed in place
    token_ids: Tensor,  # [run_rows] int64
    weights: PackedLoRA,
    scales: Tensor,  # [run_rows, 1] float32
) -> None:
    (part,) = weights.slices
    delta = (padded_rows(weights.a[token_ids]) @ part.b_t)[: len(rows)]
    sums = rows.float() + scales * delta.float()
    rows.copy_(sums if part.dora is None else apply_dora(sums, part.dora, scales))


def embedding_lora_add_meta(
    embedded: Tensor, token_ids: Tensor, segments: Segments, module: LoRAModule
) -> None:
    """Check only: tensors without contents stay as they are."""
    check(embedded, token_ids, segments, module)
