"""Tells an error after which a device is of no more use to its process from one that a step survives."""

from __future__ import annotations

import re

import torch

_DRIVER_ERRORS = re.compile(
    r"CUDA error:|CUDA driver error:|CUBLAS_STATUS_(?!NOT_SUPPORTED)|cudaError|Triton Error \[CUDA\]:"
)
"""How torch, cuBLAS and Triton begin what the driver told them; the first step after such an error would
tell the same one, for the process's context on the card is broken."""


def is_device_failure(error: BaseException) -> bool:
    """Whether the device is lost to this process: a broken context, or no memory left for what it does.

    The error may be hidden as the cause or the context of the one that was raised.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, (torch.AcceleratorError, torch.OutOfMemoryError)):
            return True
        if isinstance(link, RuntimeError) and _DRIVER_ERRORS.search(str(link)):
            return True
        link = link.__cause__ or link.__context__
    return False
