"""Chooses one token per row; a row's choice depends on its own logits, seed and position only."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.engine.step_input import SamplingInput, StepOutput

_MASK = (1 << 64) - 1
_NUM_CANDIDATES = 256
"""Most likely tokens tried before a row's whole vocabulary is sorted."""


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments (SplitMix64 finaliser, twice)."""
    bits = _mix(_mix(seed & _MASK) ^ (position & _MASK))
    return (bits >> 11) * 2.0**-53


def derive_seed(engine_seed: int, request_id: str) -> int:
    """Return the seed of a request that brought none: repeatable per engine seed and request id."""
    state = _mix(engine_seed & _MASK)
    for byte in request_id.encode("utf-8", "surrogatepass"):
        state = _mix(state ^ byte)
    return state


def sample(
    logits: Tensor,  # [num_rows, vocab_size] float32
    sampling: SamplingInput,
) -> StepOutput:
    """Return one token per row; rows with NaN or infinite logits are marked as failed."""
    best, token_ids = logits.max(dim=-1)  # NaN wins every maximum, so one look at `best` finds it
    failed = ~torch.isfinite(best)
    if not sampling.all_greedy:
        rows = ((sampling.temperatures > 0) & ~failed).nonzero().flatten()
        token_ids[rows] = _sample_rows(logits[rows], rows, sampling)
    return StepOutput(token_ids.tolist(), failed.tolist())


def _sample_rows(logits: Tensor, rows: Tensor, sampling: SamplingInput) -> Tensor:
    """Sample `logits` [n, vocab_size], whose parameters are at `rows` of the step's sampled rows."""
    # Subtracting the maximum first keeps tiny temperatures from overflowing.
    distances = logits - logits.max(dim=-1, keepdim=True).values
    probs = torch.softmax(distances / sampling.temperatures[rows].unsqueeze(1), dim=-1)
    top_ks, top_ps, uniforms = sampling.top_ks[rows], sampling.top_ps[rows], sampling.uniforms[rows]
    chosen, is_settled = _invert(probs, min(_NUM_CANDIDATES, probs.shape[-1]), top_ks, top_ps, uniforms)
    if not bool(is_settled.all()):
        rest = (~is_settled).nonzero().flatten()
        chosen[rest], _ = _invert(probs[rest], probs.shape[-1], top_ks[rest], top_ps[rest], uniforms[rest])
    return chosen


def _invert(
    probs: Tensor,  # [n, vocab_size] float32
    num_candidates: int,
    top_ks: Tensor,  # [n] int64
    top_ps: Tensor,  # [n] float64
    uniforms: Tensor,  # [n] float64
) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution over each row's most likely tokens.

    Returns the tokens [n] and whether each is certain, [n]: the candidates may end before the row's
    top-k or top-p limit does, and then the allowed mass is unknown.
    """
    vocab_size = probs.shape[-1]
    top_probs, top_ids = probs.topk(num_candidates, dim=-1)
    mass_through = top_probs.double().cumsum(dim=-1)
    mass_before = mass_through - top_probs
    allowed = (torch.arange(num_candidates) < top_ks.unsqueeze(1)) & (mass_before < top_ps.unsqueeze(1))
    is_unlimited = (top_ks >= vocab_size) & (top_ps >= 1.0)
    targets = uniforms * torch.where(
        is_unlimited, 1.0, (top_probs * allowed).sum(dim=-1, dtype=torch.float64)
    )
    picks = (mass_through <= targets.unsqueeze(1)).sum(dim=-1)
    is_settled = ~allowed[:, -1] | (is_unlimited & (picks < num_candidates)) | (num_candidates == vocab_size)
    picks = torch.minimum(picks, allowed.sum(dim=-1) - 1)
    return top_ids.gather(1, picks.unsqueeze(1)).squeeze(1), is_settled


def _mix(bits: int) -> int:
    """Scramble 64 bits (Steele, Lea and Flood, 2014)."""
    bits = (bits + 0x9E3779B97F4A7C15) & _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)
