"""adapter_config.json as PEFT writes it: what is honoured, and by name what is not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workers.engine.errors import AdapterConfigError

ALL_LINEAR = "all-linear"
WHOLE_VOCABULARY = ("lm_head", "embed_tokens")
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
_REMEDIES = {
    "use_dora": "train it without DoRA, or merge it into a checkpoint",
    "modules_to_save": "train without modules_to_save: whole layers are not served from an adapter",
    "lora_bias": "train with lora_bias=false",
    "layer_replication": "serve the replicated model as a base of its own",
    "trainable_token_indices": "train without new tokens",
}


class PeftLoraConfig(BaseModel):
    """The keys that decide what an adapter computes; every other key must be without effect or inactive."""

    model_config = ConfigDict(extra="allow", frozen=True)

    peft_type: Literal["LORA"]
    r: _Rank
    lora_alpha: _Alpha
    target_modules: list[str] | str
    use_rslora: bool = False
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    base_model_name_or_path: str | None = None
    bias: Literal["none"] = "none"
    init_lora_weights: bool | str = True

    def rank_of(self, module: str) -> int:
        """Return the rank that PEFT gives a module."""
        return _by_pattern(self.rank_pattern or {}, module, self.r)

    def scaling_of(self, module: str) -> float:
        """Return what PEFT multiplies a module's B(Ax) by: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        alpha = _by_pattern(self.alpha_pattern or {}, module, self.lora_alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Tell whether PEFT would put LoRA on this linear layer of the base."""
        if _named_by(self.exclude_modules, module):
            return False
        if isinstance(self.target_modules, str):
            return self.target_modules.lower() == ALL_LINEAR or bool(
                re.fullmatch(self.target_modules, module)
            )
        return _named_by(self.target_modules, module) and self._transforms_layer_of(module)

    def _transforms_layer_of(self, module: str) -> bool:
        layers = self.layers_to_transform
        if layers is None or layers == []:
            return True
        for pattern in _as_list(self.layers_pattern) or [r"[^.]*"]:
            if match := re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", module):
                return int(match["index"]) in ([layers] if isinstance(layers, int) else layers)
        return False


def parse_config(content: bytes, label: str) -> PeftLoraConfig:
    """Read adapter_config.json; AdapterConfigError names the key, its value and the remedy."""
    try:
        config = PeftLoraConfig.model_validate_json(content)
    except ValidationError as error:
        raise AdapterConfigError(f"{label}: adapter_config.json: {_explain(error)}") from error
    _refuse_unhonoured(config, label)
    _refuse_vocabulary(config.target_modules, label)
    _require_regexes(config, label)
    return config


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or "the file"
    if first["type"] == "missing":
        return f"key {key!r} is missing; save the adapter again with PEFT's save_pretrained"
    value = repr(first["input"])[:80]
    return f"{key} is {value}: {first['msg']}; correct it or train the adapter without it"


def _refuse_unhonoured(config: PeftLoraConfig, label: str) -> None:
    for key, value in sorted((config.model_extra or {}).items()):
        if key not in _WITHOUT_EFFECT and value not in (None, False, [], {}, ""):
            remedy = _REMEDIES.get(key, "train the adapter without it")
            raise AdapterConfigError(f"{label}: {key}={value!r} is not supported; {remedy}")
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


def _refuse_vocabulary(target_modules: list[str] | str, label: str) -> None:
    for target in [target_modules] if isinstance(target_modules, str) else target_modules:
        if target.rpartition(".")[2] in WHOLE_VOCABULARY:
            raise AdapterConfigError(
                f"{label}: target_modules names {target!r}, which adapters cannot change; train without it"
            )


def _require_regexes(config: PeftLoraConfig, label: str) -> None:
    patterns = [*(config.rank_pattern or {}), *(config.alpha_pattern or {})]
    patterns += [value for value in (config.target_modules, config.exclude_modules) if isinstance(value, str)]
    for pattern in [*patterns, *_as_list(config.layers_pattern)]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise AdapterConfigError(
                f"{label}: adapter_config.json: {pattern!r} is not a regular expression ({error}); correct it"
            ) from error


def _named_by(names: list[str] | str | None, module: str) -> bool:
    if isinstance(names, str):
        return bool(names) and bool(re.fullmatch(names, module))
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _as_list(value: list[str] | str | None) -> list[str]:
    if isinstance(value, str):
        return [value] if value else []
    return value or []


def _by_pattern(patterns: Mapping[str, _Value], module: str, default: _Value) -> _Value:
    # The first pattern that matches wins, as in PEFT, so the file's own order counts.
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
