"""Reads from the base checkpoint what clients and admission must know of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from lorayard.contract.pool import GenerationConfigUse, PoolInfo, model_len, pool_id
from lorayard.contract.request import MAX_PROMPT_BYTES

MIN_BYTES_OF_LONGEST_TOKEN: Final = 16
UNKNOWN_LONGEST_TOKEN: Final = 256
"""Assumed if the vocabulary cannot be read: no common one has a longer token."""


def describe_pool(
    model: Path,
    dtype: str,
    max_model_len: int | None,
    served_model_name: str | None = None,
    generation_config: GenerationConfigUse = "auto",
) -> PoolInfo:
    """Describe the pool of a checkpoint; raises FileNotFoundError if there is none.

    `max_prompt_bytes` refuses only what cannot be served: a prompt of more bytes than the longest token of
    the vocabulary, repeated, could hold. The worker counts exactly.
    """
    pool = pool_id(model, dtype, generation_config=generation_config)
    config: dict[str, Any] = json.loads((model / "config.json").read_bytes())
    limit = model_len(model, max_model_len)
    return PoolInfo(
        pool=pool,
        model_name=served_model_name or str(config.get("_name_or_path") or model.resolve().name),
        max_model_len=limit,
        max_prompt_bytes=min(MAX_PROMPT_BYTES, limit * _longest_token_bytes(model)),
    )


def _longest_token_bytes(model: Path) -> int:
    try:
        vocabulary = json.loads((model / "tokenizer.json").read_bytes())["model"]["vocab"]
    except (OSError, ValueError, KeyError):
        return UNKNOWN_LONGEST_TOKEN
    # A mapping of tokens, or a list of pairs of token and score.
    tokens = vocabulary if isinstance(vocabulary, dict) else (entry[0] for entry in vocabulary)
    return max(MIN_BYTES_OF_LONGEST_TOKEN, max((len(token.encode()) for token in tokens), default=0))
