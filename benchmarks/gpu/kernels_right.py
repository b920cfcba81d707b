"""Stage: every kernel against float64, the checks shared out among processes that compile side by side."""

from __future__ import annotations

import torch

from benchmarks.gpu.device import Device
from benchmarks.gpu.records import Recorder
from benchmarks.gpu.right import attention, experts, lora, quantized, rows
from benchmarks.gpu.right.check import Check
from benchmarks.gpu.workers import share_out

_NUM_WORKERS = 12


def run(device: Device, recorder: Recorder) -> None:
    """Run every check; one that breaks is recorded and costs nothing but itself."""
    # The slowest to compile come first.
    checks = [one for kind in (attention, lora, experts, quantized, rows) for one in kind.checks(device)]
    if device.is_rehearsal:
        checks = _one_of_each(checks)

    def work(item: int) -> None:
        check = checks[item]
        # What multiplies for comparison must not be less exact than what is compared.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        with recorder.alone(f"{check.kernel}, {check.name}"):
            for case, verdict in check.run(device):
                recorder.check(check.kernel, f"{check.name}: {case}", **verdict._asdict())

    def lost(item: int, exit_status: int) -> None:
        name = f"{checks[item].kernel}, {checks[item].name}" if item >= 0 else "before its first check"
        recorder.failure(name, f"its process ended with exit status {exit_status}")

    share_out(len(checks), work, lost, device=device, num_workers=2 if device.is_rehearsal else _NUM_WORKERS)


def _one_of_each(checks: list[Check]) -> list[Check]:
    """Return one check of each kernel: a rehearsal tries the script, and the tests try the kernels."""
    return list({check.kernel: check for check in reversed(checks)}.values())
