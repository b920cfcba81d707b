"""Pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorayard.contract.pool import GenerationConfigUse


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool's model, and the tokenizer that its workers have in common."""

    pool: str
    model_name: str
    served_model_name: str | None  # what workers were told to call it
    model_path: str  # where they found it
    dtype: str
    quantization: str | None
    generation_config: GenerationConfigUse
    tokenizer: str  # digest of its files
    config: Mapping[str, Any]  # config.json, with `tie_word_embeddings` as the weights have it
