"""An error of the driver ends the engine's process; what belongs to one step or one request does not."""

from __future__ import annotations

import pytest
import torch

from workers.engine.core.device_failures import is_device_failure, is_out_of_memory


def caused(cause: Exception) -> Exception:
    try:
        raise ValueError("the step failed") from cause
    except ValueError as error:
        return error


def met_on_the_way(cause: Exception) -> Exception:
    try:
        try:
            raise cause
        finally:
            raise KeyError("while it was put away")
    except KeyError as error:
        return error


LOST = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    "error",
    [
        LOST,
        RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"),
        RuntimeError("CUDA driver error: device-side assert triggered"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        caused(LOST),
        met_on_the_way(LOST),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:40],
)
def test_these_cost_the_process_its_device(error: Exception) -> None:
    assert is_device_failure(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError("Found no NVIDIA driver on your system."),
        RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu!"),
        ValueError("CUDA error: said by somebody else"),
        MemoryError(),
        OSError("broken pipe"),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:40],
)
def test_these_do_not(error: Exception) -> None:
    assert not is_device_failure(error)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (caused(torch.OutOfMemoryError("CUDA out of memory.")), True),
        (LOST, False),
        (RuntimeError("the tokenizer is out of memory"), False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_want_of_memory_is_told_from_a_broken_context(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory


def test_errors_that_are_each_others_cause_come_to_an_end() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one

    assert not is_device_failure(one)
