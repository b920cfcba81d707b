"""Tokens chosen on this host, as plain values."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.registry import build
from workers.engine.core.step_input import SamplingInput, StepOutput
from workers.engine.sampling.sampler import choose


def sample(logits: Tensor, sampling: SamplingInput) -> StepOutput:
    """Choose with the draw that an engine has here."""
    return choose(logits, sampling, build("cpu", torch.float32).draw).read()
