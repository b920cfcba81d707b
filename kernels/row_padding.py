"""Row counts at which a float32 product does not depend on how many rows are multiplied together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# MKL's sgemm picks its loop by the row count and rounds differently unless that is a multiple of 4: 1-3, 5-7,
# 9 and 11 rows differed in the last bits from the same rows in a larger batch (torch 2.13, AVX-512, 2026-11).
# bfloat16 through oneDNN was the same for all row counts tried.
ROW_MULTIPLE = 4


def padded_rows(
    x: Tensor,  # [num_rows, in_features]
) -> Tensor:  # [num_rows rounded up, in_features]
    """Return x with rows of zeros below, where its dtype and row count need them."""
    missing = -x.shape[0] % ROW_MULTIPLE
    if missing == 0 or x.dtype is not torch.float32:
        return x
    return F.pad(x, (0, 0, 0, missing))
