"""The `quantization_config` of a checkpoint's config.json; what it does not honour is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from workers.engine.core.errors import CheckpointError
from workers.engine.model.quantization.awq import AwqCheckpoint
from workers.engine.model.quantization.bitsandbytes import BitsAndBytesCheckpoint
from workers.engine.model.quantization.gptq import GptqCheckpoint
from workers.engine.model.quantization.mxfp4 import Mxfp4Checkpoint

QuantizedCheckpoint = BitsAndBytesCheckpoint | AwqCheckpoint | GptqCheckpoint | Mxfp4Checkpoint
_ADAPTER: TypeAdapter[QuantizedCheckpoint] = TypeAdapter(
    Annotated[QuantizedCheckpoint, Field(discriminator="quant_method")]
)


def quantization_of(raw: Mapping[str, Any], path: Path) -> QuantizedCheckpoint | None:
    """Return how the checkpoint is quantised, None if it is not."""
    given = raw.get("quantization_config")
    if given is None:
        return None
    try:
        return _ADAPTER.validate_python(given)
    except ValidationError as error:
        problem = error.errors()[0]
        # The first part of the place is the method, if that is known.
        key = ".".join(["quantization_config", *(str(part) for part in problem["loc"][1:])])
        reason = problem["msg"].removeprefix("Value error, ")
        raise CheckpointError(
            f"{path}: {key} is {problem['input']!r}: {reason}; "
            "use a checkpoint quantised so, or the plain one"
        ) from error
