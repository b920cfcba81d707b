"""Ops in plain torch one row at a time: every shape is the row's own, so its bits know no batch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.activations.clamped_swiglu import clamped_swiglu_reference
from kernels.activations.swiglu import Gate
from kernels.attention.paged_attention import HeadNorms, paged_attention_reference
from kernels.experts.choose_experts import Choice, choose_experts_reference
from kernels.experts.combine_experts import combine_experts_reference
from kernels.norms.add_rms_norm import add_rms_norm_reference
from kernels.sampling.torch_draw import draw_torch


def gate_by_row(gate: Gate) -> Gate:
    """Return `swiglu_reference` or `geglu_reference` row by row."""

    def by_row(gate_up: Tensor) -> Tensor:
        # Copies, here and below: torch's loops may treat what is aligned otherwise in another way.
        rows = [gate(row.clone()) for row in _rows(gate_up)]
        return torch.cat(rows) if rows else gate(gate_up)

    return by_row


def clamped_swiglu_by_row(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """Compute `clamped_swiglu_reference`."""
    return gate_by_row(lambda row: clamped_swiglu_reference(row, alpha, limit))(gate_up)


def add_rms_norm_by_row(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Compute `add_rms_norm_reference`."""
    if delta is not None:
        residual += delta
    out = torch.empty_like(residual)
    for row, normed in zip(_rows(residual), _rows(out), strict=True):
        normed.copy_(add_rms_norm_reference(row.clone(), None, weight, eps))
    return out


def choose_experts_by_row(logits: Tensor, num_chosen: int, normalizes: bool) -> Choice:
    """Compute `choose_experts_reference`."""
    choices = [choose_experts_reference(row.clone(), num_chosen, normalizes) for row in _rows(logits)]
    return Choice(*map(torch.cat, zip(*choices, strict=True)))


def combine_experts_by_row(answers: Tensor, places: Tensor, shares: Tensor) -> Tensor:
    """Compute `combine_experts_reference`."""
    chosen = zip(places.view(shares.shape).unbind(), _rows(shares), strict=True)
    return torch.cat([combine_experts_reference(answers, mine, share) for mine, share in chosen])


def draw_by_row(
    logits: Tensor,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    min_ps: Tensor | None,
    uniforms: Tensor,
    largest: Tensor | None = None,
) -> Tensor:
    """Draw as `Draw` says."""
    best = logits.amax(dim=-1) if largest is None else largest
    chosen = torch.zeros(logits.shape[0], dtype=torch.int64)
    for row in (temperatures > 0).nonzero().flatten().tolist():
        mine = slice(row, row + 1)
        rest = None if min_ps is None else min_ps[mine]
        limits = temperatures[mine], top_ks[mine], top_ps[mine], rest, uniforms[mine], best[mine]
        chosen[mine] = draw_torch(logits[mine].clone(), *limits)
    return chosen


def paged_attention_by_row(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    sequence_rows: Tensor,
    block_tables: Tensor,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    head_norms: HeadNorms | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute `paged_attention_reference`: a row's shapes follow from its position."""
    num_kv_columns = 2 * keys.shape[1] * keys.shape[3]
    out = qkv.new_zeros(qkv.shape[0], qkv.shape[1] - num_kv_columns)
    for (start, num_rows, first), table in zip(sequence_rows.tolist(), _rows(block_tables), strict=True):
        for number in range(num_rows):
            mine = slice(start + number, start + number + 1)
            out[mine] = paged_attention_reference(
                qkv[mine].clone(),
                keys,
                values,
                cos[mine],
                sin[mine],
                sequence_rows.new_tensor([[0, 1, first + number]]),
                table,
                scale,
                window=window,
                softcap=softcap,
                head_norms=head_norms,
                sinks=sinks,
            )
    return out


def _rows(x: Tensor) -> tuple[Tensor, ...]:  # [1, width] each
    return x.unsqueeze(1).unbind()
