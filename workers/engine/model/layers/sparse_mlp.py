"""The MLP of layers with experts: a router chooses a few for every token and weighs their answers."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.activations.swiglu import Gate
from kernels.experts.expert_rows import ExpertRows
from kernels.lora.segments import Segments
from workers.engine.model.config import Experts
from workers.engine.model.layers.adapted_linear import AdaptedLinear
from workers.engine.model.layers.expert_linear import ExpertLinear


class SparseMLP:
    """sum over the chosen experts e of share_e down_e(silu(gate_e) * up_e) (Shazeer et al., 2017).

    A token's answer is its own: the sum runs in the order of the router's preference, in float32.
    """

    def __init__(
        self, experts: Experts, router: AdaptedLinear, gate_up: ExpertLinear, down: ExpertLinear, gate: Gate
    ) -> None:
        """`gate` is silu(gate) * up."""
        self._experts = experts
        self._router = router
        self._gate_up = gate_up
        self._down = down
        self._gate = gate

    def __call__(
        self,
        x: Tensor,  # [num_tokens, hidden_size]
        segments: Segments | None,
    ) -> Tensor:  # [num_tokens, hidden_size]
        """Return what is added to the residual."""
        shares, chosen = self._choose(x, segments)
        rows = ExpertRows.of(chosen)
        if segments is not None:
            segments = rows.segments(segments)
        hidden = self._gate(self._gate_up(x.index_select(0, rows.sources), rows, segments))
        answers = self._down(hidden, rows, segments).index_select(0, rows.places)
        answers = answers.view(*chosen.shape, -1).float()
        return (answers * shares.unsqueeze(-1)).sum(dim=1).to(x.dtype)

    def _choose(self, x: Tensor, segments: Segments | None) -> tuple[Tensor, Tensor]:
        """Return the chosen experts' shares and numbers, [num_tokens, num_chosen] each."""
        shares = torch.softmax(self._router(x, segments), dim=-1, dtype=torch.float32)
        shares, chosen = shares.topk(self._experts.num_chosen, dim=-1)
        if self._experts.normalizes:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        return shares, chosen
