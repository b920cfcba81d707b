"""Whether an adapter can be served on a base: every check there is, before anything is given up for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from workers.engine.core.errors import (
    AdapterBaseMismatch,
    AdapterConfigError,
    AdapterDigestMismatch,
    AdapterError,
    AdapterFileError,
    AdapterMatchesNothing,
    AdapterRankError,
    AdapterShapeError,
)
from workers.engine.lora.files.adapter_files import read_files
from workers.engine.lora.files.base import (
    EMBEDDING,
    HEAD,
    BaseDescription,
    ModuleShape,
)
from workers.engine.lora.files.digest import adapter_digest, digest_of
from workers.engine.lora.files.foreign_folders import CONFIG_NAME
from workers.engine.lora.files.fused_experts import FusedExperts
from workers.engine.lora.files.limits import largest_files
from workers.engine.lora.files.module_filter import allows
from workers.engine.lora.files.notices import base_notices, file_notices
from workers.engine.lora.files.peft_config import PeftLoraConfig, parse_config
from workers.engine.lora.files.peft_file import LoRAPair, read_tensors
from workers.engine.lora.files.vocabulary import check_vocabulary, saved_modules, ties_head, with_tied_head


@dataclass(frozen=True, slots=True)
class AdapterDescription:
    """What is known of a valid adapter without keeping its weights."""

    digest: str
    rank: int  # the largest of any module
    targets: tuple[str, ...]  # last parts of the paths of all modules it changes, sorted
    bytes: int  # of all its files
    num_modules: int  # with LoRA
    base_model_name: str | None
    peft_version: str | None
    warnings: tuple[str, ...] = ()  # what its owner should know although it is served


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """An adapter that fits its base, with the weights as trained."""

    description: AdapterDescription
    config: PeftLoraConfig
    pairs: Mapping[str, LoRAPair]  # by module path, embedding and head among them
    saved: Mapping[str, Tensor]  # whole weights by module path: embedding and head
    label: str  # what messages call it
    fused: FusedExperts = field(default_factory=FusedExperts)  # which of the pairs were one in the file

    def scaling_of(self, module: str) -> float:
        """Return what PEFT multiplies a module's B(Ax) by."""
        return self.config.scaling_of(self.fused.name_of(module))


def adapter_label(name: str, path: str | Path) -> str:
    """Return how messages call an adapter."""
    return f"adapter {name!r} ({path})" if name else f"adapter at {path}"


def validate_adapter(
    path: str | Path,
    *,
    base: BaseDescription,
    max_rank: int,
    name: str = "",
    revision: str | None = None,
    target_modules: Sequence[str] | None = None,
    base_name: str | None = None,
) -> AdapterDescription:
    """Check an adapter's files against a base without activating it; raises the AdapterError that fits."""
    checked = check_adapter(
        path,
        base=base,
        max_rank=max_rank,
        name=name,
        revision=revision,
        target_modules=target_modules,
        base_name=base_name,
    )
    return checked.description


def check_adapter(
    path: str | Path,
    *,
    base: BaseDescription,
    max_rank: int,
    name: str = "",
    revision: str | None = None,
    target_modules: Sequence[str] | None = None,
    base_name: str | None = None,
) -> CheckedAdapter:
    """Read an adapter once, check all of it and return its weights; what is hashed is what is checked.

    `target_modules` are the modules that adapters may change; None means all. `base_name` is what its base is
    called, whatever its own file says; empty if names are not to be compared.
    """
    label = adapter_label(name, path)
    files = _read(Path(path), base, label, revision)
    digest = digest_of(files)
    if revision is not None and digest != revision:
        raise AdapterDigestMismatch(
            f"{label}: its files have digest {digest}, but revision {revision} was asked for; restore those "
            "files or ask for the new revision"
        )
    config = parse_config(files[CONFIG_NAME], label)
    trained_on = config.base_model_name_or_path if base_name is None else base_name
    warnings = base_notices(trained_on or "", base, label) if base_name != "" else ()
    tensors = read_tensors(files, label)
    fused = FusedExperts.targeted(config, base, label)
    pairs = fused.cut(tensors.pairs, config, label)
    if ties_head(config, base):
        pairs = with_tied_head(pairs, config, label)
    saved = saved_modules(tensors, config, base, label)
    shapes = base.adaptable
    ranks = {module: config.rank_of(fused.name_of(module)) for module in pairs}
    _check_modules(config, fused, pairs, base, label)
    _check_allowed([*pairs, *saved], target_modules, label)
    for module, pair in sorted(pairs.items()):
        _check_rank(module, ranks[module], max_rank, label)
        _check_shapes(module, pair, ranks[module], shapes[module], label)
        _check_extras(module, pair, config, label)
    check_vocabulary(tensors, pairs, saved, base, label)
    warnings += file_notices(Path(path), base, label)
    description = _describe(digest, files, config, ranks, saved, warnings)
    return CheckedAdapter(description, config, pairs, saved, label, fused)


def _read(path: Path, base: BaseDescription, label: str, revision: str | None) -> dict[str, bytes]:
    """Read the files; damaged ones say nothing against a pinned revision, unless they are what was added."""
    try:
        return read_files(path, label, max_bytes=largest_files(base))
    except AdapterFileError as error:
        if revision is None or _has_digest(path, revision):
            raise
        raise AdapterDigestMismatch(f"{error}; it is not revision {revision}, which was asked for") from error


def _has_digest(path: Path, revision: str) -> bool:
    with suppress(AdapterError):
        return adapter_digest(path) == revision
    return False


def _describe(
    digest: str,
    files: Mapping[str, bytes],
    config: PeftLoraConfig,
    ranks: Mapping[str, int],  # by module with LoRA
    saved: Mapping[str, Tensor],
    warnings: tuple[str, ...],
) -> AdapterDescription:
    version = (config.model_extra or {}).get("peft_version")
    return AdapterDescription(
        digest=digest,
        rank=max(ranks.values()),
        targets=tuple(sorted({module.rpartition(".")[2] for module in (*ranks, *saved)})),
        bytes=sum(len(content) for content in files.values()),
        num_modules=len(ranks),
        base_model_name=config.base_model_name_or_path,
        peft_version=version if isinstance(version, str) else None,
        warnings=warnings,
    )


def _check_modules(
    config: PeftLoraConfig,
    fused: FusedExperts,
    pairs: Mapping[str, LoRAPair],
    base: BaseDescription,
    label: str,
) -> None:
    """Require that the configuration and the file speak of the same modules, all of them in the base."""
    every = base.adaptable
    targeted = {
        module
        for module in every
        if module in fused.names or (module not in base.parameters and config.targets(module))
    }
    if ties_head(config, base) and EMBEDDING in targeted:
        targeted.add(HEAD)
    known = pairs.keys() & every.keys()
    if parts := sorted(known & base.parameters.keys() - fused.names.keys()):
        raise AdapterFileError(
            f"{label}: weights for {parts[0]!r} ({len(parts)} such modules), and this base has no such "
            f"modules, but the parameter {base.parameters[parts[0]]!r}; train it with that in "
            "target_parameters"
        )
    strangers = sorted(pairs.keys() - every.keys())
    remedy = "train it on this base"
    if strangers and (wrapper := _extra_part(strangers[0], every)):
        remedy = (
            f"without {wrapper!r} it would be there: save the adapter of the model that is wrapped in that"
        )
    if not targeted or not known:
        raise AdapterMatchesNothing(
            f"{label}: no module of the base matches; target_modules={config.target_modules!r:.300}, "
            f"{len(pairs)} modules in the file, the base has such as {next(iter(base.shapes))!r}; "
            f"{remedy}"
        )
    if strangers:
        raise AdapterBaseMismatch(
            f"{label}: it changes {strangers[0]!r} ({len(strangers)} such modules), which this base of "
            f"{base.num_layers} layers lacks; {remedy}"
        )
    if untrained := sorted(targeted - pairs.keys()):
        raise AdapterFileError(
            f"{label}: no weights for {untrained[0]!r} ({len(untrained)} such modules), which "
            "adapter_config.json targets; the file is incomplete: copy or save the adapter again"
        )
    if unnamed := sorted(pairs.keys() - targeted):
        raise AdapterFileError(
            f"{label}: weights for {unnamed[0]!r} ({len(unnamed)} such modules), which adapter_config.json "
            "does not target; pair the weights with their own configuration"
        )


def _extra_part(path: str, modules: Collection[str]) -> str | None:
    """Return what a wrapper, such as torch.compile or a multimodal model, has put into a module's path."""
    parts = path.split(".")
    for start in range(len(parts)):
        for end in (start + 1, start + 2):
            if ".".join(parts[:start] + parts[end:]) in modules:
                return ".".join(parts[start:end])
    return None


def _check_rank(module: str, rank: int, max_rank: int, label: str) -> None:
    if rank > max_rank:
        raise AdapterRankError(
            f"{label}: rank {rank} of {module} is over max_lora_rank={max_rank}; raise max_lora_rank or "
            "train with a lower r"
        )


def _check_allowed(modules: Sequence[str], allowed: Sequence[str] | None, label: str) -> None:
    refused = sorted(module for module in modules if not allows(allowed, module))
    if refused:
        error = AdapterMatchesNothing if len(refused) == len(modules) else AdapterConfigError
        raise error(
            f"{label}: it changes {refused[0]!r} ({len(refused)} of its {len(modules)} modules), which "
            f"lora_target_modules={list(allowed or ())!r} does not allow; allow it, or train without it"
        )


def _check_shapes(module: str, pair: LoRAPair, rank: int, shape: ModuleShape, label: str) -> None:
    expected_a, expected_b = (rank, shape.in_features), (shape.out_features, rank)
    found_a, found_b = tuple(pair.a.shape), tuple(pair.b.shape)
    if (found_a, found_b) != (expected_a, expected_b):
        raise AdapterShapeError(
            f"{label}: {module} has lora_A {found_a} and lora_B {found_b}, but rank {rank} on this "
            f"base needs {expected_a} and {expected_b}; train it on this base, or correct r or rank_pattern"
        )
    for part, tensor in (("lora_B.bias", pair.bias), ("lora_magnitude_vector", pair.magnitude)):
        if tensor is not None and tuple(tensor.shape) != (shape.out_features,):
            raise AdapterShapeError(
                f"{label}: {module} has {part} {tuple(tensor.shape)}, but this base needs "
                f"({shape.out_features},); train it on this base"
            )


def _check_extras(module: str, pair: LoRAPair, config: PeftLoraConfig, label: str) -> None:
    parts = (("lora_bias", "lora_B.bias", pair.bias), ("use_dora", "lora_magnitude_vector", pair.magnitude))
    for key, part, tensor in parts:
        is_wanted = bool(getattr(config, key))
        if is_wanted != (tensor is not None):
            raise AdapterFileError(
                f"{label}: {module} has {'no' if is_wanted else 'a'} {part}, but adapter_config.json has "
                f"{key}={is_wanted}; pair the weights with their own configuration"
            )
