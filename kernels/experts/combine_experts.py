"""The answer of a layer with experts: what each row's experts say, weighed by their shares."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

CombineExperts = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Called as `combine_experts_reference`."""


def combine_experts_reference(
    answers: Tensor,  # [num_rows * num_chosen, width], sorted by expert
    places: Tensor,  # [num_rows * num_chosen] int64, the sorted row of each row's first, second, .. choice
    shares: Tensor,  # [num_rows, num_chosen] float32
) -> Tensor:  # [num_rows, width]
    """Return the sum over the choices of share times answer, in their order and in float32."""
    chosen = answers.index_select(0, places).view(*shares.shape, -1).float()
    return (chosen * shares.unsqueeze(-1)).sum(dim=1).to(answers.dtype)
