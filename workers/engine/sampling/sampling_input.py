"""Builds the part of a step that says how each sampled row chooses its token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.lora.segments import Segments
from workers.engine.core.sampling_params import SamplingParams
from workers.engine.core.sequence import SequenceState
from workers.engine.core.step_input import (
    LogitShifts,
    LogprobRows,
    Penalties,
    PromptRows,
    SamplingInput,
    TokenMasks,
)
from workers.engine.sampling.sampler import uniform


def sampling_input(
    sequences: Sequence[SequenceState],
    rows: Tensor,  # [at least len(sequences)] int64
    vocab_size: int,
    *,
    segments: Segments | None,  # of `rows`
    prompts: tuple[PromptRows, ...],
) -> SamplingInput:
    """Describe the choice of one token for each sequence; what nobody asks for stays None."""
    params = [sequence.params for sequence in sequences]
    has_rules = any(sequence.rules is not None for sequence in sequences)
    return SamplingInput(
        num_rows=len(sequences),
        rows=rows,
        all_greedy=all(param.is_greedy for param in params),
        temperatures=torch.tensor([param.temperature for param in params], dtype=torch.float32),
        top_ks=torch.tensor(
            [param.top_k if param.top_k > 0 else vocab_size for param in params], dtype=torch.int64
        ),
        top_ps=torch.tensor([param.top_p for param in params], dtype=torch.float64),
        uniforms=torch.tensor([_uniform(sequence) for sequence in sequences], dtype=torch.float64),
        min_ps=_min_ps(sequences),
        shifts=_shifts(sequences) if has_rules else None,
        penalties=_penalties(sequences) if has_rules else None,
        masks=_masks(sequences, vocab_size),
        logprobs=_logprobs(params),
        segments=segments,
        prompts=prompts,
    )


def _uniform(sequence: SequenceState) -> float:
    return 0.0 if sequence.params.is_greedy else uniform(sequence.seed, sequence.num_tokens)


def _min_ps(sequences: Sequence[SequenceState]) -> Tensor | None:
    min_ps = [sequence.params.min_p for sequence in sequences]
    return torch.tensor(min_ps, dtype=torch.float32) if any(min_ps) else None


def _logprobs(params: Sequence[SamplingParams]) -> LogprobRows | None:
    asking = {row: param.logprobs for row, param in enumerate(params) if param.logprobs is not None}
    return LogprobRows(torch.tensor(list(asking)), max(asking.values())) if asking else None


def _masks(sequences: Sequence[SequenceState], vocab_size: int) -> TokenMasks | None:
    grammars = [(row, one.grammar) for row, one in enumerate(sequences) if one.grammar is not None]
    if not grammars:
        return None
    bits = np.zeros((len(grammars), -(-vocab_size // 32)), dtype=np.int32)
    for mask, (_, grammar) in zip(bits, grammars, strict=True):
        grammar.fill(mask)
    return TokenMasks(torch.tensor([row for row, _ in grammars]), torch.from_numpy(bits))


def _shifts(sequences: Sequence[SequenceState]) -> LogitShifts | None:
    rows: list[int] = []
    token_ids: list[int] = []
    values: list[float] = []
    for row, sequence in enumerate(sequences):
        shifts = None if sequence.rules is None else sequence.rules.shifts()
        if shifts is not None:
            rows += [row] * len(shifts.token_ids)
            token_ids += shifts.token_ids
            values += shifts.values
    if not rows:
        return None
    return LogitShifts(torch.tensor(rows), torch.tensor(token_ids), torch.tensor(values, dtype=torch.float32))


def _penalties(sequences: Sequence[SequenceState]) -> Penalties | None:
    rules = [(row, sequence.rules) for row, sequence in enumerate(sequences) if sequence.rules is not None]
    penalised = [(row, found) for row, one in rules if (found := one.penalties()) is not None]
    if not penalised:
        return None
    sizes = [len(found.token_ids) for _, found in penalised]
    # Concatenation copies: later tokens must not change what was described here.
    return Penalties(
        rows=torch.from_numpy(np.repeat([row for row, _ in penalised], sizes)),
        token_ids=torch.from_numpy(np.concatenate([found.token_ids for _, found in penalised])),
        factors=torch.from_numpy(np.concatenate([found.factors for _, found in penalised])),
        deductions=torch.from_numpy(np.concatenate([found.deductions for _, found in penalised])),
    )
