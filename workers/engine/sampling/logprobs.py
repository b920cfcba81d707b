"""Log-probabilities of tokens under the model's own distribution, whatever the request does to it later."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from workers.engine.core.outputs import TopLogprobs


class TokenLogprobs(NamedTuple):
    """What each row says of its token and of the most likely ones, where the logits are."""

    token_ids: Tensor  # [num_rows, 1 + num_likeliest] int64, the row's own token first
    logprobs: Tensor  # [num_rows, 1 + num_likeliest] float32
    ranks: Tensor  # [num_rows] int64, of the row's own token

    def read(self) -> list[TopLogprobs]:
        """Return the rows as plain values; the tensors must be on the host."""
        return [TopLogprobs(*row) for row in zip(*(part.tolist() for part in self), strict=True)]


def token_logprobs(
    logits: Tensor,  # [num_rows, vocab_size] float32, as the model gave them
    token_ids: Tensor,  # [num_rows] int64, the token of each row
    num_likeliest: int,
) -> TokenLogprobs:
    """Compute what each row says of its token and of the most likely ones; asks the device nothing."""
    own = logits.gather(1, token_ids.unsqueeze(1))  # [num_rows, 1]
    ranks = (logits >= own).sum(dim=-1)
    likeliest, likeliest_ids = logits.topk(min(num_likeliest, logits.shape[1]), dim=-1)
    values = torch.cat((own, likeliest), dim=1) - _log_sums(logits)
    ids = torch.cat((token_ids.unsqueeze(1), likeliest_ids), dim=1)
    return TokenLogprobs(ids, values, ranks)


def _log_sums(logits: Tensor) -> Tensor:  # [num_rows, 1]
    """Return log(sum(exp)) of each row; on a CPU row by row, for torch sums a lone row in another order."""
    rows = logits.unsqueeze(1).unbind() if logits.device.type == "cpu" and len(logits) else (logits,)
    return torch.cat([row.logsumexp(dim=-1, keepdim=True) for row in rows])
