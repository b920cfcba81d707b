"""Which modules may carry LoRA at all, if the engine's owner says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from workers.engine.core.errors import ConfigError

_PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Names under which checkpoints and people know several modules as one."""


def allows(names: Sequence[str] | None, module: str) -> bool:
    """Tell whether a module may carry LoRA: it is named by path, by last part, or as its packed module.

    A packed module is allowed by each of its parts too; None allows every module.
    """
    return names is None or any(_names(name, module) for name in names)


def check_names(names: Sequence[str], modules: Iterable[str]) -> None:
    """Raise ConfigError for a name that is not a module of the base."""
    every = list(modules)
    for name in names:
        if not any(_names(name, module) for module in every):
            known = ", ".join(sorted({module.rpartition(".")[2] for module in every}))
            raise ConfigError(f"lora_target_modules names {name!r}, which this base lacks; it has {known}")


def _names(name: str, module: str) -> bool:
    if module == name or module.endswith(f".{name}"):
        return True
    last = module.rpartition(".")[2]
    return last in _PACKED.get(name, ()) or name in _PACKED.get(last, ())
