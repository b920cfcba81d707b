"""Reads GPTQ checkpoints: codes of neighbouring inputs in a word, and each input's group by name.

Source: the packing of AutoGPTQ and GPTQModel, as described in docs/quantization.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from kernels.linear.quantized_weight import QuantizedWeight
from workers.engine.core.errors import CheckpointError
from workers.engine.model.checkpoint import CheckpointReader
from workers.engine.model.quantization.grouped import (
    SCALE_DTYPES,
    GroupSize,
    group_size_of,
    grouped_weight,
    read_words,
    unpack_words,
)

_EXCLUDES = "-:"
"""What GPTQModel begins a pattern of `dynamic` with if its modules are left as they are."""


class GptqCheckpoint(BaseModel):
    """`desc_act` shows in the tensor `g_idx`; modules without a `qweight` are not quantised."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    quant_method: Literal["gptq"]
    bits: Literal[4, 8]
    group_size: GroupSize = 128
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq"
    lm_head: Literal[False] = False
    pack_dtype: Literal["int32"] = "int32"
    dynamic: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _one_name_for_the_layout(cls, given: Any) -> Any:
        """Newer writers call `checkpoint_format` `format`; null means the default."""
        if not isinstance(given, dict):
            return given
        filled = {key: value for key, value in given.items() if value is not None}
        if filled.get("is_marlin_format"):
            return {**filled, "checkpoint_format": "marlin"}
        layout = filled.get("checkpoint_format") or filled.get("format") or "gptq"
        return {**filled, "checkpoint_format": layout}

    @field_validator("dynamic")
    @classmethod
    def _excludes_only(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Modules may be left out, which the tensors show; settings of their own are not read."""
        for pattern, settings in given.items():
            if settings and not pattern.startswith(_EXCLUDES):
                raise ValueError(f"{pattern!r:.80} has settings of its own, {settings!r:.80}")
        return given

    def read_weight(
        self, reader: CheckpointReader, path: str, out_features: int, in_features: int
    ) -> QuantizedWeight | None:
        """Return a module's weight, None if the checkpoint holds it unquantised."""
        if not reader.has(f"{path}.qweight"):
            return None
        per_word = 32 // self.bits
        num_groups = in_features // group_size_of(self.group_size, in_features, path)
        words = read_words(reader, f"{path}.qweight", (in_features // per_word, out_features))
        codes = unpack_words(words, self.bits).transpose(1, 2).reshape(in_features, out_features)
        columns = _read_columns(reader, path, in_features, num_groups)
        return grouped_weight(
            codes=(codes if columns is None else codes[columns]).t(),
            scales=reader.read_stored(f"{path}.scales", (num_groups, out_features), SCALE_DTYPES),
            zeros=self._zeros(read_words(reader, f"{path}.qzeros", (num_groups, out_features // per_word))),
            bits=self.bits,
            columns=columns,
        )

    def _zeros(self, words: Tensor) -> Tensor:  # [num_groups, out_features] uint8
        stored = unpack_words(words, self.bits).flatten(1)
        if self.checkpoint_format == "gptq_v2":
            return stored
        # The first format stores each zero less 1, and 0 as the largest code.
        return (stored + 1) & ((1 << self.bits) - 1)


def _read_columns(
    reader: CheckpointReader, path: str, in_features: int, num_groups: int
) -> Tensor | None:  # [in_features] int32
    """Return the inputs sorted by their groups, None if they are so already."""
    name = f"{path}.g_idx"
    if not reader.has(name):
        return None
    groups = reader.read_stored(name, (in_features,), (torch.int32, torch.int64)).long()
    size = in_features // num_groups
    if not torch.equal(groups.sort().values, torch.arange(num_groups).repeat_interleave(size)):
        raise CheckpointError(
            f"{reader.place(name)} does not put {size} inputs into each of {num_groups} groups; "
            "quantise the model again, or use the plain one"
        )
    columns = groups.argsort(stable=True)
    return None if torch.equal(columns, torch.arange(in_features)) else columns.to(torch.int32)
