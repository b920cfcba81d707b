"""Reads what bitsandbytes writes: 4 bit codes of a table per block (NF4, FP4), or int8 rows.

Source: `QuantState.as_dict` and `Linear8bitLt._save_to_state_dict` of bitsandbytes 0.50.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from kernels.linear.quantized_weight import QuantizedWeight, pack_codes
from workers.engine.core.errors import CheckpointError
from workers.engine.model.checkpoint import CheckpointReader
from workers.engine.model.quantization.int8 import int8_weight

_STORAGES = (torch.uint8, torch.bfloat16, torch.float16, torch.float32)  # of 4 bit codes; the bits count
_INT8_STEP = 7.874015718698502e-3  # 1 / 127 as bitsandbytes multiplies with it


class BitsAndBytesCheckpoint(BaseModel):
    """Which modules are quantised is told by their tensors; LLM.int8's threshold is of no use to weights."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    quant_method: Literal["bitsandbytes"]
    load_in_4bit: bool = False
    load_in_8bit: bool = False

    @model_validator(mode="after")
    def _has_one_width(self) -> BitsAndBytesCheckpoint:
        if self.load_in_4bit == self.load_in_8bit:
            raise ValueError("one of load_in_4bit and load_in_8bit must be true")
        return self

    def read_weight(
        self, reader: CheckpointReader, path: str, out_features: int, in_features: int
    ) -> QuantizedWeight | None:
        """Return a module's weight, None if the checkpoint holds it unquantised."""
        if reader.has(f"{path}.weight.absmax"):
            return _read_4bit(reader, f"{path}.weight", out_features, in_features)
        if reader.has(f"{path}.SCB"):
            return _read_int8(reader, path, out_features, in_features)
        return None


class _State(BaseModel):
    """The numbers beside a 4 bit weight's tensors."""

    quant_type: Literal["nf4", "fp4"]
    blocksize: int = Field(gt=0)
    shape: tuple[int, int]
    nested_blocksize: int = 0
    nested_offset: float = 0.0


def _read_4bit(reader: CheckpointReader, name: str, out_features: int, in_features: int) -> QuantizedWeight:
    state = _read_state(reader, name)
    if state.shape != (out_features, in_features):
        raise CheckpointError(
            f"{reader.place(name)} has shape {state.shape}, config.json implies "
            f"{(out_features, in_features)}; use the config and the weights of the same checkpoint"
        )
    num_weights = out_features * in_features
    packed = reader.read_stored(name, None, _STORAGES).contiguous().view(torch.uint8).flatten()
    if packed.numel() != -(-num_weights // 2):
        raise CheckpointError(
            f"{reader.place(name)} holds {packed.numel()} bytes for {num_weights} weights of 4 bits; "
            "download the file again"
        )
    codes = torch.stack((packed >> 4, packed & 15), dim=1).flatten()[:num_weights]
    return QuantizedWeight(
        in_features=in_features,
        codes=pack_codes(codes.view(out_features, in_features)),
        scales=_read_scales(reader, name, state, -(-num_weights // state.blocksize)),
        zeros=None,
        table=reader.read_stored(f"{name}.quant_map", (16,), (torch.float32,)),
        block=state.blocksize,
    )


def _read_state(reader: CheckpointReader, name: str) -> _State:
    stored = [f"{name}.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")]
    found = next(filter(reader.has, stored), None)
    if found is None:
        raise CheckpointError(
            f"{reader.place(name)} has no quant_state of NF4 or FP4; save it with bitsandbytes 0.41 or later"
        )
    text = bytes(reader.read_stored(found, None, (torch.uint8,)).tolist())
    try:
        return _State.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(
            f"{reader.place(found)} cannot be read: {error}; save the model again"
        ) from error


def _read_scales(reader: CheckpointReader, name: str, state: _State, num_blocks: int) -> Tensor:
    if not state.nested_blocksize:
        return reader.read_stored(f"{name}.absmax", (num_blocks,), (torch.float32,))
    codes = reader.read_stored(f"{name}.absmax", (num_blocks,), (torch.uint8,)).long()
    num_nested = -(-num_blocks // state.nested_blocksize)
    nested = reader.read_stored(f"{name}.nested_absmax", (num_nested,), (torch.float32,))
    table = reader.read_stored(f"{name}.nested_quant_map", (256,), (torch.float32,))
    scales = table[codes] * nested.repeat_interleave(state.nested_blocksize)[:num_blocks]
    return scales + state.nested_offset


def _read_int8(reader: CheckpointReader, path: str, out_features: int, in_features: int) -> QuantizedWeight:
    layout = f"{path}.weight_format"
    if reader.has(layout) and int(reader.read_stored(layout, (), (torch.uint8, torch.int32))) != 0:
        raise CheckpointError(
            f"{reader.place(layout)} is not 0 (rows), the only layout served; "
            "save the model with bitsandbytes 0.43 or later"
        )
    codes = reader.read_stored(f"{path}.weight", (out_features, in_features), (torch.int8,))
    scales = reader.read_stored(f"{path}.SCB", (out_features,), (torch.float32,))
    return int8_weight(codes, scales * _INT8_STEP)
