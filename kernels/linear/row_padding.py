"""Row counts at which a float32 product depends least on how many rows are multiplied together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# MKL's sgemm picks its loop by the row count and rounds differently: 1-3 rows, and on several threads 5-7 and
# 9-11 too, differed in the last bits from the same rows in a larger batch (torch 2.13, AVX-512, 2026-11).
# With multiples of 4 all are the same on AMD with AVX2; on Intel with AVX512 even 4 and 24 rows differ.
# bfloat16 through oneDNN was the same for all row counts tried, but with AMX it changes from 16 rows on.
ROW_MULTIPLE = 4


def num_padded_rows(num_rows: int, dtype: torch.dtype) -> int:
    """Return how many rows to compute for so many in this dtype."""
    return num_rows if dtype is not torch.float32 else num_rows + -num_rows % ROW_MULTIPLE


def padded_rows(
    x: Tensor,  # [num_rows, in_features]
) -> Tensor:  # [num_rows rounded up, in_features]
    """Return x with rows of zeros below, if its dtype and row count need them."""
    missing = num_padded_rows(x.shape[0], x.dtype) - x.shape[0]
    return F.pad(x, (0, 0, 0, missing)) if missing else x
