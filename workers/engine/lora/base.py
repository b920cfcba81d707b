"""What an adapter must fit: the base model's name and the shapes of its linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from workers.engine.model.config import load_model_config
from workers.engine.model.layout import layer_modules, layer_path


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A linear layer's width in and out."""

    in_features: int
    out_features: int


class PackedKey(NamedTuple):
    """A packed module's place in the model."""

    layer: int
    module: str  # its name within the layer, such as "qkv"
    expert: int | None = None  # whose, where each expert has a module of that name


PackedLayout = Mapping[PackedKey, tuple[str, ...]]  # the paths of the modules that are packed, in order


@dataclass(frozen=True, slots=True)
class BaseDescription:
    """A base model as adapters see it; `name` may be empty, which means unknown."""

    name: str
    num_layers: int
    shapes: Mapping[str, ModuleShape]  # by module path as PEFT names it below base_model.model.
    layout: PackedLayout  # how the model packs them


def describe_base(model_dir: str | Path, *, name: str | None = None) -> BaseDescription:
    """Describe a checkpoint from its config.json alone; raises CheckpointError for one that is not served.

    Its name is `name`, else the one config.json gives, else the folder's.
    """
    folder = Path(model_dir)
    config = load_model_config(folder)
    shapes: dict[str, ModuleShape] = {}
    layout: dict[PackedKey, tuple[str, ...]] = {}
    for layer in range(config.num_layers):
        for packed in layer_modules(config, layer):
            paths = {f"{layer_path(layer)}.{part.path}": part for part in packed.parts}
            shapes |= {path: ModuleShape(part.in_features, part.out_features) for path, part in paths.items()}
            layout[PackedKey(layer, packed.name, packed.expert)] = tuple(paths)
    return BaseDescription(name or config.name or base_name(folder), config.num_layers, shapes, layout)


def base_name(model_dir: str | Path) -> str:
    """Return a checkpoint folder's model name; a Hugging Face cache folder gives the hub's name."""
    path = Path(model_dir).absolute()
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return path.name


def same_base(one: str, other: str) -> bool:
    """Tell whether two names can mean one model; folders, owners and case are set aside, empty is unknown."""
    short = [
        base_name(name.rstrip("/\\").replace("\\", "/")).rpartition("/")[2].casefold()
        for name in (one, other)
    ]
    return not one or not other or short[0] == short[1]
