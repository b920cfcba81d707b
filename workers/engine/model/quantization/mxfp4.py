"""Reads MXFP4, as GPT-OSS has it: the experts' matrices, 32 inputs of 4 bits each to one power of two.

Source: `convert_moe_packed_tensors` of transformers 5, and the OCP's specification of MX formats 1.0.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from kernels.linear.quantized_weight import QuantizedWeight, pack_codes
from workers.engine.core.errors import CheckpointError
from workers.engine.model.checkpoint import CheckpointReader, Member
from workers.engine.model.quantization.grouped import group_size_of

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4_TABLE = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)])
MX_BLOCK = 32
_BIAS, _NAN = 127, 255  # of a block's exponent


class Mxfp4Checkpoint(BaseModel):
    """Stacks of experts without `_blocks` are plain, as is everything else."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    quant_method: Literal["mxfp4"]

    def read_weight(
        self, reader: CheckpointReader, path: str, out_features: int, in_features: int
    ) -> QuantizedWeight | None:
        """Return None: modules are plain."""
        del reader, path, out_features, in_features
        return None

    def read_member(
        self, reader: CheckpointReader, name: str, member: Member | None, out_features: int, in_features: int
    ) -> QuantizedWeight | None:
        """Return one expert's weight, None if the checkpoint holds the stack of this name unquantised."""
        if not reader.has(f"{name}_blocks"):
            return None
        num_blocks = in_features // group_size_of(MX_BLOCK, in_features, name)
        shape = (out_features, num_blocks, MX_BLOCK // 2)
        blocks = reader.read_stored(f"{name}_blocks", shape, (torch.uint8,), member)
        exponents = reader.read_stored(f"{name}_scales", shape[:2], (torch.uint8,), member)
        if (exponents == _NAN).any():
            raise CheckpointError(
                f"{reader.place(f'{name}_scales')} has exponent {_NAN}, which stands for no number; "
                "download the file again"
            )
        # Two codes a byte, the earlier weight in the low half.
        codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(1)
        return QuantizedWeight(
            in_features=in_features,
            codes=pack_codes(codes),
            scales=torch.exp2(exponents.double() - _BIAS).float().flatten(),
            zeros=None,
            table=FP4_TABLE,
            block=MX_BLOCK,
        )
