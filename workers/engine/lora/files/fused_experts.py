"""Adapters of fused experts: one pair of matrices for all experts of a layer, cut into a pair per module.

Since transformers 5 the experts of a layer are parameters of [num_experts, out, in], which PEFT adapts by
name (`target_parameters`): A holds the ranks of one expert after the other, B has them interleaved. Expert e
gets s B[:, :, e] A[e], which is what PEFT computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from workers.engine.core.errors import AdapterConfigError, AdapterFileError, AdapterShapeError
from workers.engine.lora.files.base import BaseDescription
from workers.engine.lora.files.peft_config import PeftLoraConfig
from workers.engine.lora.files.peft_file import LoRAPair

_PARAMETERS = {"gate_up": "experts.gate_up_proj", "down": "experts.down_proj", "router": "gate.weight"}
"""Names of the packed modules in transformers 5, where the base's file has others."""
_SHORTEST_NAMES = ("gate_up_proj", "down_proj", "gate.weight", "router.weight")
_NESTED = ".base_layer"


@dataclass(frozen=True, slots=True)
class FusedParameter:
    """A parameter of the base that PEFT adapts as one, the modules of all experts in it."""

    name: str  # as PEFT knows it, such as "model.layers.3.mlp.experts.gate_up_proj"
    modules: tuple[tuple[str, ...], ...]  # by expert, the paths of those whose outputs lie side by side

    @property
    def owner(self) -> str:
        """The module that has the parameter."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class FusedExperts:
    """The fused parameters that an adapter's configuration targets."""

    parameters: tuple[FusedParameter, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)  # the parameter of each module in one

    @classmethod
    def targeted(cls, config: PeftLoraConfig, base: BaseDescription, label: str) -> FusedExperts:
        """Find what `target_parameters` names; AdapterConfigError for all that are not experts or routers."""
        targets = config.target_parameters or []
        known = list(_fused_parameters(base)) if targets else []
        for target in targets:
            if not any(_names(target, parameter) for parameter in known):
                raise AdapterConfigError(
                    f"{label}: target_parameters={targets!r} is not supported: {target!r} is neither fused "
                    "experts (mlp.experts.gate_up_proj, mlp.experts.down_proj) nor a router "
                    "(mlp.gate.weight, on GPT-OSS mlp.router.weight) of this base; train the adapter "
                    "without it"
                )
        found = tuple(
            parameter for parameter in known if any(_names(target, parameter) for target in targets)
        )
        names = {path: parameter.name for parameter in found for paths in parameter.modules for path in paths}
        return cls(found, names)

    def name_of(self, module: str) -> str:
        """Return the name by which the configuration's patterns know a module."""
        return self.names.get(module, module)

    def cut(self, pairs: Mapping[str, LoRAPair], config: PeftLoraConfig, label: str) -> dict[str, LoRAPair]:
        """Return the pairs with those of fused parameters replaced by one per module."""
        remaining = dict(pairs)
        for place, parameter in _places(self.parameters).items():
            if fused := remaining.pop(place, None):
                remaining |= _cut(fused, parameter, config.rank_of(parameter.name), label)
        return remaining


def _fused_parameters(base: BaseDescription) -> Iterator[FusedParameter]:
    modules: dict[str, list[tuple[str, ...]]] = {}
    for key, paths in base.layout.items():
        if key.expert is not None or key.module == "router":
            fused = f"model.layers.{key.layer}.mlp.{_PARAMETERS[key.module]}"
            name = base.parameters.get(paths[0], fused)
            modules.setdefault(name, []).append(paths)
    return (FusedParameter(name, tuple(paths)) for name, paths in modules.items())


def _names(target: str, parameter: FusedParameter) -> bool:
    is_end = parameter.name == target or parameter.name.endswith(f".{target}")
    return is_end and target.endswith(_SHORTEST_NAMES)


def _places(parameters: Sequence[FusedParameter]) -> dict[str, FusedParameter]:
    """Return where files hold them: PEFT wraps a module once per parameter, the first one innermost."""
    places: dict[str, FusedParameter] = {}
    for parameter in reversed(parameters):
        place = parameter.owner
        while place in places:
            place += _NESTED
        places[place] = parameter
    return places


def _cut(fused: LoRAPair, parameter: FusedParameter, rank: int, label: str) -> dict[str, LoRAPair]:
    num_experts = len(parameter.modules)
    _check(fused, parameter, num_experts * rank, label)
    a = fused.a.view(num_experts, rank, fused.a.shape[1])  # [num_experts, rank, in_features]
    b = fused.b.view(fused.b.shape[0], rank, num_experts)  # [out_features, rank, num_experts]
    pairs: dict[str, LoRAPair] = {}
    for expert, paths in enumerate(parameter.modules):
        shared, parts = a[expert], b[:, :, expert].chunk(len(paths))
        pairs |= {path: LoRAPair(shared, part) for path, part in zip(paths, parts, strict=True)}
    return pairs


def _check(fused: LoRAPair, parameter: FusedParameter, ranks: int, label: str) -> None:
    if fused.bias is not None or fused.magnitude is not None:
        raise AdapterFileError(
            f"{label}: {parameter.name} has a bias or magnitudes beside its LoRA, which PEFT knows for "
            "modules only; save the adapter again"
        )
    num_parts = len(parameter.modules[0])
    is_split = fused.b.dim() == 2 and fused.b.shape[0] % num_parts == 0
    if fused.a.dim() != 2 or not is_split or (fused.a.shape[0], fused.b.shape[1]) != (ranks, ranks):
        num_experts = len(parameter.modules)
        raise AdapterShapeError(
            f"{label}: {parameter.name} has lora_A {tuple(fused.a.shape)} and lora_B {tuple(fused.b.shape)}, "
            f"but {num_experts} experts of rank {ranks // num_experts} need ({ranks}, in) and "
            f"(out, {ranks}); train it on this base, or correct r or rank_pattern"
        )
