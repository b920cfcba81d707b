"""Reads AWQ checkpoints in the "gemm" layout: eight 4 bit codes of eight outputs in a word, in AWQ's order.

Source: the packing of AutoAWQ's WQLinear_GEMM, as described in docs/quantization.md.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from torch import Tensor

from kernels.linear.quantized_weight import QuantizedWeight
from workers.engine.model.checkpoint import CheckpointReader
from workers.engine.model.quantization.grouped import (
    SCALE_DTYPES,
    GroupSize,
    group_size_of,
    grouped_weight,
    read_words,
    unpack_words,
)

_BITS = 4
# The i-th 4 bits of a word belong to output _ORDER[i] of its eight.
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PLACE_OF_OUTPUT = torch.tensor(_ORDER).argsort()


class AwqCheckpoint(BaseModel):
    """Modules without a `qweight` are those that AWQ was told not to convert."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    quant_method: Literal["awq"]
    bits: Literal[4]
    group_size: GroupSize = 128
    zero_point: Literal[True] = True
    version: Literal["gemm"] = "gemm"

    @model_validator(mode="before")
    @classmethod
    def _one_name_for_the_layout(cls, given: Any) -> Any:
        """Newer transformers call `version` `format`."""
        if isinstance(given, dict) and given.get("version") is None:
            return {**given, "version": given.get("format") or "gemm"}
        return given

    @field_validator("version", mode="before")
    @classmethod
    def _in_any_case(cls, given: Any) -> Any:
        return given.lower() if isinstance(given, str) else given

    def read_weight(
        self, reader: CheckpointReader, path: str, out_features: int, in_features: int
    ) -> QuantizedWeight | None:
        """Return a module's weight, None if the checkpoint holds it unquantised."""
        if not reader.has(f"{path}.qweight"):
            return None
        num_groups = in_features // group_size_of(self.group_size, in_features, path)
        num_words = out_features // 8
        return grouped_weight(
            codes=_in_order(read_words(reader, f"{path}.qweight", (in_features, num_words))).t(),
            scales=reader.read_stored(f"{path}.scales", (num_groups, out_features), SCALE_DTYPES),
            zeros=_in_order(read_words(reader, f"{path}.qzeros", (num_groups, num_words))),
            bits=_BITS,
        )


def _in_order(
    words: Tensor,  # [num_rows, out_features / 8] int32
) -> Tensor:  # [num_rows, out_features] uint8
    return unpack_words(words, _BITS)[:, :, _PLACE_OF_OUTPUT].flatten(1)
