"""Quantised weights: what checkpoints hold of them, and how plain ones are quantised while they load."""

from __future__ import annotations

from workers.engine.model.quantization.config import QuantizedCheckpoint, quantization_of
from workers.engine.model.quantization.in_flight import Quantize, in_flight
from workers.engine.model.quantization.mxfp4 import Mxfp4Checkpoint
from workers.engine.model.quantization.random_codes import random_codes

__all__ = [
    "Mxfp4Checkpoint",
    "QuantizedCheckpoint",
    "Quantize",
    "in_flight",
    "quantization_of",
    "random_codes",
]
