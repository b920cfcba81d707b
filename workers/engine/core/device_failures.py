"""Tells an error after which a device is of no more use to its process from one that a step survives."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

_DRIVER_ERRORS = re.compile(
    r"CUDA error:|CUDA driver error:|CUBLAS_STATUS_(?!NOT_SUPPORTED)|cudaError|Triton Error \[CUDA\]:"
)
"""How torch, cuBLAS and Triton begin what the driver told them; the first step after such an error would
tell the same one, for the process's context on the card is broken."""

_NO_MEMORY = re.compile(r"out of memory|CUBLAS_STATUS_ALLOC_FAILED")


def is_device_failure(error: BaseException) -> bool:
    """Whether the device is lost to this process: a broken context, or no memory left for what it does."""
    return any(_is_of_device(link) for link in _links(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's failure is that its memory does not suffice."""
    return any(_is_of_device(link) and _NO_MEMORY.search(str(link)) for link in _links(error))


def _is_of_device(error: BaseException) -> bool:
    if isinstance(error, (torch.AcceleratorError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _DRIVER_ERRORS.search(str(error)) is not None


def _links(error: BaseException) -> Iterator[BaseException]:
    """Go through an error and those behind it: whoever handles one may meet, or raise, another."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
