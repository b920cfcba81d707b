"""The sampling parameters that a checkpoint's makers gave it as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import structlog

from workers.engine.core.errors import CheckpointError, InvalidParams
from workers.engine.core.json_files import read_json
from workers.engine.core.sampling_defaults import SamplingDefaults
from workers.engine.core.sampling_params import SamplingParams

log = structlog.get_logger(__name__)

_NOT_APPLIED: dict[str, tuple[object, ...]] = {
    "begin_suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "sequence_bias": ({}, []),
    "stop_strings": ([],),
    "suppress_tokens": ([],),
    "top_h": (),
    "typical_p": (1,),
}
"""What else transformers' `generate` obeys, with the values that change nothing there."""


def read_sampling_defaults(folder: Path) -> SamplingDefaults:
    """Read what a checkpoint says of the parameters that requests may leave unset.

    generation_config.json decides; a folder without one has them in config.json, if anywhere, as
    transformers reads it. Raises CheckpointError for a value that no request could ask for.
    """
    path = folder / "generation_config.json"
    raw = read_json(path)
    if raw is None:
        path = folder / "config.json"
        raw = read_json(path) or {}
    _warn_of_what_is_not_applied(raw, path)
    found = {
        field.name: raw[field.name] for field in fields(SamplingDefaults) if raw.get(field.name) is not None
    }
    try:
        SamplingParams(**found)
    except InvalidParams as error:
        raise CheckpointError(
            f"{path}: {error}; or set generation_config (LORAYARD_GENERATION_CONFIG) to 'none', which leaves "
            "its sampling parameters unread"
        ) from error
    return SamplingDefaults(**found)


def _warn_of_what_is_not_applied(raw: Mapping[str, Any], path: Path) -> None:
    names = [
        name
        for name, harmless in _NOT_APPLIED.items()
        if raw.get(name) is not None and raw[name] not in harmless
    ]
    if names:
        log.warning(
            "generation_config.not_applied",
            file=str(path),
            parameters=names,
            remedy="requests are served without; ask for stop, min_tokens, bad_words or logit_bias by name",
        )
