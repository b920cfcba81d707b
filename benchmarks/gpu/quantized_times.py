"""Stage: what a decode step takes on a base that stays quantised, beside the time that its bytes take."""

from __future__ import annotations

from benchmarks.gpu.device import Device
from benchmarks.gpu.quantized_case import CODINGS
from benchmarks.gpu.records import Recorder
from benchmarks.gpu.step_times import Stage

_QUANTIZATIONS = {"int4 g128": "awq", "NF4": "bitsandbytes", "int8 rows": "int8"}


def run(device: Device, recorder: Recorder) -> None:
    """Measure one engine after the other; what breaks costs its own cases."""
    stage = Stage(device, recorder)
    for name, quantization in list(_QUANTIZATIONS.items())[: 1 if device.is_rehearsal else None]:
        with recorder.alone(name):
            stage.quantized(name, quantization, CODINGS[name].bytes_per_weight)
