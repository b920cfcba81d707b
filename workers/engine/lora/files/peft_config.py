"""adapter_config.json as PEFT writes it: what is honoured, and by name what is not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from workers.engine.core.errors import AdapterConfigError
from workers.engine.lora.files.patterns import PatternError, check, fullmatch

ALL_LINEAR = "all-linear"
VOCABULARY_MODULES = ("embed_tokens", "lm_head")
_MAX_NAMES = 65_536  # entries of one key: 128 experts in each of 48 layers have 18,432 modules
_MAX_PATTERNS = 2048  # each is tried on every module
_MAX_PATTERN_CHARS = 65_536  # of all: compiling them takes some 2 s on one core
_Value = TypeVar("_Value")
_Rank = Annotated[int, Field(gt=0, strict=True)]
_Alpha = Annotated[float, Field(allow_inf_nan=False, strict=True)]

# These matter while training only, or say where the adapter comes from: no value changes an answer.
_WITHOUT_EFFECT = frozenset({
    "auto_mapping", "corda_config", "eva_config", "inference_mode", "lora_dropout", "lora_ga_config",
    "loftq_config", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "task_type", "velora_config",
})  # fmt: skip
# These start from the base weights and change them, unless the adapter was converted when it was saved.
_HARMLESS_STARTS = ("gaussian", "eva", "orthogonal", "true", "false")
_PATTERN_KEYS = frozenset({"rank_pattern", "alpha_pattern", "layers_pattern"})
_REMEDIES = {
    "layer_replication": "serve the replicated model as a base of its own",
    "trainable_token_indices": "train without new tokens, or the whole embed_tokens as modules_to_save",
}


class PeftLoraConfig(BaseModel):
    """The keys that decide what an adapter computes; every other key must be without effect or inactive."""

    model_config = ConfigDict(extra="allow", frozen=True)

    peft_type: Literal["LORA"]
    r: _Rank
    lora_alpha: _Alpha
    target_modules: list[str] | str
    target_parameters: list[str] | None = None
    use_rslora: bool = False
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    base_model_name_or_path: str | None = None
    bias: Literal["none"] = "none"
    lora_bias: bool = False
    use_dora: bool = False
    modules_to_save: list[str] | None = None
    ensure_weight_tying: bool = False
    init_lora_weights: bool | str = True

    @model_validator(mode="before")
    @classmethod
    def _may_target_parameters_alone(cls, given: Any) -> Any:
        """No names are what PEFT writes for an adapter of parameters only."""
        if (
            isinstance(given, dict)
            and given.get("target_parameters")
            and given.get("target_modules", ()) is None
        ):
            return {**given, "target_modules": []}
        return given

    @cached_property
    def _targets(self) -> frozenset[str]:
        return frozenset(self.target_modules)

    def rank_of(self, module: str) -> int:
        """Return the rank that PEFT gives a module."""
        return _by_pattern(self.rank_pattern or {}, module, self.r)

    def scaling_of(self, module: str) -> float:
        """Return what PEFT multiplies a module's B(Ax) by: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        alpha = _by_pattern(self.alpha_pattern or {}, module, self.lora_alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Tell whether PEFT would put LoRA on this module of the base."""
        if _named_by(self.exclude_modules, module) or self.saves(module):
            return False
        targets = self.target_modules
        if isinstance(targets, str):
            if targets.lower() == ALL_LINEAR:
                return module.rpartition(".")[2] not in VOCABULARY_MODULES
            return fullmatch(targets, module)
        if module in self._targets:
            return True
        return not self._targets.isdisjoint(_ends(module)) and self._transforms_layer_of(module)

    def saves(self, module: str) -> bool:
        """Tell whether the adapter brings a whole copy of this module of the base."""
        return _named_by(self.modules_to_save, module)

    def _transforms_layer_of(self, module: str) -> bool:
        layers = self.layers_to_transform
        if layers is None or layers == []:
            return True
        for pattern in _as_list(self.layers_pattern) or [r"[^.]*"]:
            # The first index whose path before it matches is the layer's, not that of an expert within it.
            for index in re.finditer(r"\.(\d+)(?=\.)", module):
                if fullmatch(_in_path(pattern), module[: index.start()]):
                    return int(index[1]) in ([layers] if isinstance(layers, int) else layers)
        return False


def parse_config(content: bytes, label: str) -> PeftLoraConfig:
    """Read adapter_config.json; AdapterConfigError names the key, its value and the remedy."""
    try:
        config = PeftLoraConfig.model_validate_json(content)
    except ValidationError as error:
        raise AdapterConfigError(f"{label}: adapter_config.json: {_explain(error)}") from error
    _refuse_long(config, label)
    _refuse_unhonoured(config, label)
    _refuse_saved_layers(config.modules_to_save or [], label)
    _require_patterns(config, label)
    return config


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:  # the value is the whole file: of a link, that may be anyone's
        return f"the file is not that of PEFT ({first['msg']}); save the adapter again with save_pretrained"
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"key {key!r} is missing; save the adapter again with PEFT's save_pretrained"
    value = repr(first["input"])[:80]
    return f"{key} is {value}: {first['msg']}; correct it or train the adapter without it"


def _refuse_long(config: PeftLoraConfig, label: str) -> None:
    """Refuse what nobody trains and would take long to match against every module."""
    for key in type(config).model_fields:
        value = getattr(config, key)
        most = _MAX_PATTERNS if key in _PATTERN_KEYS else _MAX_NAMES
        if isinstance(value, (list, dict)) and len(value) > most:
            raise AdapterConfigError(
                f"{label}: adapter_config.json: {key} has {len(value)} entries, at most {most} are read; "
                "name modules by their ends, or with one regular expression"
            )

    num_chars = sum(len(pattern) for key in _PATTERN_KEYS for pattern in getattr(config, key) or ())
    if num_chars > _MAX_PATTERN_CHARS:
        raise AdapterConfigError(
            f"{label}: adapter_config.json: its patterns have {num_chars} characters, at most "
            f"{_MAX_PATTERN_CHARS} are read; name modules by their ends"
        )


def _refuse_unhonoured(config: PeftLoraConfig, label: str) -> None:
    for key, value in sorted((config.model_extra or {}).items()):
        if key not in _WITHOUT_EFFECT and value not in (None, False, [], {}, ""):
            remedy = _REMEDIES.get(key, "train the adapter without it")
            raise AdapterConfigError(f"{label}: {key:.80}={value!r:.200} is not supported; {remedy}")
    if config.use_dora and config.lora_bias:
        raise AdapterConfigError(
            f"{label}: lora_bias=True beside use_dora=True has no meaning in PEFT; train with one of them"
        )
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower() not in _HARMLESS_STARTS:
        raise AdapterConfigError(
            f"{label}: init_lora_weights={start!r} changes the base model's weights; convert it to a "
            "plain LoRA with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if isinstance(config.target_modules, str) and config.layers_to_transform is not None:
        raise AdapterConfigError(
            f"{label}: layers_to_transform={config.layers_to_transform!r} has no meaning beside "
            f"target_modules={config.target_modules!r}; give target_modules as a list"
        )


def _refuse_saved_layers(modules: list[str], label: str) -> None:
    for module in modules:
        if module.rpartition(".")[2] not in VOCABULARY_MODULES:
            raise AdapterConfigError(
                f"{label}: modules_to_save={modules!r:.200}: {module!r:.200} is not served from an adapter, "
                f"only {' and '.join(VOCABULARY_MODULES)} are; train without it, or merge the adapter into a "
                "checkpoint"
            )


def _require_patterns(config: PeftLoraConfig, label: str) -> None:
    layers = _as_list(config.layers_pattern)
    if any("|" in pattern for pattern in layers):
        raise AdapterConfigError(
            f"{label}: layers_pattern={config.layers_pattern!r} with '|' is read in another way by PEFT; "
            "give a list of names"
        )
    patterns = [*(config.rank_pattern or {}), *(config.alpha_pattern or {})]
    wrapped = [(pattern, _in_path(pattern)) for pattern in [*patterns, *layers]]
    whole = [value for value in (config.target_modules, config.exclude_modules) if isinstance(value, str)]
    for pattern, matched in [*((pattern, pattern) for pattern in whole), *wrapped]:
        try:
            check(matched)
        except PatternError as error:
            raise AdapterConfigError(
                f"{label}: adapter_config.json: pattern {pattern!r:.200}: {error}; correct it, or name the "
                "modules in a list"
            ) from error


def _ends(module: str) -> Iterator[str]:
    """Yield a path and what is left of it without its first part, its first two, and so on."""
    yield module
    while module:
        _, _, module = module.partition(".")
        yield module


def _named_by(names: list[str] | str | None, module: str) -> bool:
    if isinstance(names, str):
        return bool(names) and fullmatch(names, module)
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _as_list(value: list[str] | str | None) -> list[str]:
    if isinstance(value, str):
        return [value] if value else []
    return value or []


def _by_pattern(patterns: Mapping[str, _Value], module: str, default: _Value) -> _Value:
    # The first pattern that matches wins, as in PEFT, so the file's own order counts.
    for pattern, value in patterns.items():
        if fullmatch(_in_path(pattern), module):
            return value
    return default


def _in_path(pattern: str) -> str:
    return rf"(.*\.)?({pattern})"
