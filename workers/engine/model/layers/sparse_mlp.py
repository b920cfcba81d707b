"""The MLP of layers with experts: a router chooses a few for every token and weighs their answers."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from kernels.activations.swiglu import Gate
from kernels.lora.segments import Segments
from kernels.registry import Kernels
from workers.engine.model.config import Experts
from workers.engine.model.layers.adapted_linear import AdaptedLinear
from workers.engine.model.layers.expert_linear import ExpertLinear


class SparseMLP:
    """sum over the chosen experts e of share_e down_e(gated(gate_up_e)) (Shazeer et al., 2017).

    A token's answer is its own: the sum runs in the order of the router's preference, in float32. On a device
    nothing of the choice is known to the host: what is launched depends on shapes alone.
    """

    def __init__(
        self,
        experts: Experts,
        router: AdaptedLinear,
        gate_up: ExpertLinear,
        down: ExpertLinear,
        kernels: Kernels,
    ) -> None:
        self._gate: Gate = kernels.swiglu
        if (alpha := experts.gate_alpha) is not None and (limit := experts.gate_limit) is not None:
            self._gate = partial(kernels.clamped_swiglu, alpha=alpha, limit=limit)
        self._experts = experts
        self._router = router
        self._gate_up = gate_up
        self._down = down
        self._kernels = kernels

    def __call__(
        self,
        x: Tensor,  # [num_tokens, hidden_size]
        segments: Segments | None,
        sequence_rows: Tensor | None = None,  # [num_seqs, 3] int32; None: every row is some sequence's
    ) -> Tensor:  # [num_tokens, hidden_size]
        """Return what is added to the residual; on a device no expert is read for rows of no sequence."""
        kernels, experts = self._kernels, self._experts
        shares, chosen = kernels.choose_experts(
            self._router(x, segments), experts.num_chosen, experts.normalizes
        )
        rows = kernels.sort_by_expert(chosen, experts.num_experts, sequence_rows)
        if segments is not None:
            segments = kernels.expert_segments(rows, segments)
        hidden = self._gate(self._gate_up(x, rows, segments, gathers=True))
        return kernels.combine_experts(self._down(hidden, rows, segments), rows.places, shares)
