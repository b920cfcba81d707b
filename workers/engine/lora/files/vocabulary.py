"""What an adapter does to embedding and head beside LoRA: whole copies, tied weights, copies of the base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from workers.engine.core.errors import (
    AdapterConfigError,
    AdapterFileError,
    AdapterShapeError,
    CheckpointError,
)
from workers.engine.lora.files.base import EMBEDDING, HEAD, BaseDescription, Vocabulary
from workers.engine.lora.files.peft_config import PeftLoraConfig
from workers.engine.lora.files.peft_file import AdapterTensors, LoRAPair
from workers.engine.model.checkpoint import CheckpointReader
from workers.engine.model.layout import tied_name


def ties_head(config: PeftLoraConfig, base: BaseDescription) -> bool:
    """Tell whether what changes the embedding changes the head alike; on an untied base PEFT ties nothing."""
    return config.ensure_weight_tying and base.vocabulary is not None and base.vocabulary.is_tied


def with_tied_head(pairs: Mapping[str, LoRAPair], config: PeftLoraConfig, label: str) -> dict[str, LoRAPair]:
    """Return the pairs with the head's, which is the embedding's the other way round."""
    embedding = pairs.get(EMBEDDING)
    if embedding is None or config.saves(EMBEDDING):
        return dict(pairs)
    tied = LoRAPair(embedding.b.T, embedding.a.T)
    given = pairs.get(HEAD, tied)
    if not (_equal(given.a, tied.a) and _equal(given.b, tied.b)):
        raise AdapterFileError(
            f"{label}: ensure_weight_tying is set, but LoRA of {HEAD} is not that of {EMBEDDING} transposed; "
            "save the adapter again, or train it without ensure_weight_tying"
        )
    if config.rank_of(HEAD) != config.rank_of(EMBEDDING):
        raise AdapterConfigError(
            f"{label}: rank_pattern gives {HEAD} rank {config.rank_of(HEAD)} and {EMBEDDING} "
            f"{config.rank_of(EMBEDDING)}, but ensure_weight_tying ties them; give both one rank"
        )
    return {**pairs, HEAD: given}


def saved_modules(
    tensors: AdapterTensors, config: PeftLoraConfig, base: BaseDescription, label: str
) -> dict[str, Tensor]:
    """Return the whole weights that replace the base's; a tied head shares its embedding's tensor."""
    wanted = [module for module in (EMBEDDING, HEAD) if config.saves(module)]
    if wanted and base.vocabulary is None:
        raise AdapterConfigError(
            f"{label}: modules_to_save={config.modules_to_save!r}, but embedding and head of this base "
            "cannot be replaced; train without modules_to_save"
        )
    if wanted and ties_head(config, base):
        return _tied(tensors.saved, label)
    for module in wanted:
        if module not in tensors.saved:
            raise _missing(module, label)
    return {module: tensors.saved[module] for module in wanted}


def check_vocabulary(
    tensors: AdapterTensors,
    pairs: Mapping[str, LoRAPair],
    saved: Mapping[str, Tensor],
    base: BaseDescription,
    label: str,
) -> None:
    """Require that whole weights have the base's shape, and that copies of the base are the base's."""
    if both := sorted(pairs.keys() & saved.keys()):
        raise AdapterConfigError(
            f"{label}: it has LoRA for {both[0]!r} and replaces the whole of it; train it with one of them"
        )
    copies = {module: weight for module, weight in tensors.saved.items() if module not in saved}
    for module, weight in (*tensors.saved.items(), *tensors.base_copies.items(), *tensors.doubles.items()):
        _check_shape(module, weight, base, label)
    for module, double in tensors.doubles.items():
        if module not in saved or not _equal(double, saved[module]):
            raise AdapterFileError(
                f"{label}: {module}.modules_to_save.weight is not {module}.weight, of which PEFT reads the "
                "second alone; save the adapter again"
            )
    for module, copy in (*copies.items(), *tensors.base_copies.items()):
        assert base.vocabulary is not None
        if not _is_the_bases(module, copy, base.vocabulary, label):
            raise AdapterFileError(
                f"{label}: it carries its base's {module}, and it is not that of {base.name!r}; train it on "
                "this base, name it in modules_to_save if it was trained, or save the adapter with "
                "save_embedding_layers=False"
            )


def _tied(saved: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    embedding = saved.get(EMBEDDING)
    if embedding is None:
        raise _missing(EMBEDDING, label)
    if not _equal(saved.get(HEAD, embedding), embedding):
        raise AdapterFileError(
            f"{label}: ensure_weight_tying is set, but its {HEAD} is not its {EMBEDDING}; save the adapter "
            "again, or train it without ensure_weight_tying"
        )
    return {EMBEDDING: embedding, HEAD: embedding}


def _missing(module: str, label: str) -> AdapterFileError:
    return AdapterFileError(
        f"{label}: no {module}.weight, which modules_to_save names; the file is incomplete: copy or save the "
        "adapter again"
    )


def _check_shape(module: str, weight: Tensor, base: BaseDescription, label: str) -> None:
    if base.vocabulary is None or module not in (EMBEDDING, HEAD):
        raise AdapterFileError(
            f"{label}: it holds a whole {module}, which this base lacks; train it on this base"
        )
    expected = (base.vocabulary.size, base.vocabulary.hidden_size)
    if tuple(weight.shape) != expected:
        raise AdapterShapeError(
            f"{label}: its {module} is {tuple(weight.shape)}, the base's {expected}; a resized vocabulary is "
            "not served from an adapter: merge it into a checkpoint, or train it on this base"
        )


def _is_the_bases(module: str, copy: Tensor, vocabulary: Vocabulary, label: str) -> bool:
    # In the copy's own dtype: PEFT saved what the base looked like when it was loaded in that.
    if not vocabulary.checkpoint:
        return False
    try:
        with CheckpointReader(Path(vocabulary.checkpoint), copy.dtype) as reader:
            name = tied_name(reader.has) if vocabulary.is_tied else f"{module}.weight"
            return torch.equal(reader.read(name, tuple(copy.shape)), copy)
    except CheckpointError as error:
        raise AdapterFileError(
            f"{label}: it carries its base's {module}, which cannot be compared with the checkpoint "
            f"({error}); save the adapter with save_embedding_layers=False"
        ) from error


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
