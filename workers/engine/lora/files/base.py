"""What an adapter must fit: the base model's name and the shapes of its linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from workers.engine.lora.files.base_names import BaseMatch, base_name, compare_base, is_published
from workers.engine.lora.files.chat_files import ChatFiles, read_chat_files
from workers.engine.model.config import ModelConfig, load_model_config
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
    expert: int | None = None  # whose, if each expert has a module of that name


PackedLayout = Mapping[PackedKey, tuple[str, ...]]  # the paths of the modules that are packed, in order

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The base's embedding and head, [size, hidden_size] both, and one tensor if they are tied."""

    size: int
    hidden_size: int
    is_tied: bool
    checkpoint: str = ""  # the folder that holds them; empty: copies in adapters cannot be compared

    @property
    def shapes(self) -> dict[str, ModuleShape]:
        """Their shapes by module path; an embedding maps one-hot tokens to rows."""
        return {
            EMBEDDING: ModuleShape(self.size, self.hidden_size),
            HEAD: ModuleShape(self.hidden_size, self.size),
        }


@dataclass(frozen=True, slots=True)
class BaseDescription:
    """A base model as adapters see it; `name` may be empty, which means unknown."""

    name: str
    num_layers: int
    shapes: Mapping[str, ModuleShape]  # of linear layers, by path as PEFT names it below base_model.model.
    layout: PackedLayout  # how the model packs them
    vocabulary: Vocabulary | None = None  # None: adapters cannot change embedding and head
    other_names: tuple[str, ...] = ()  # its folder's, beside `name`
    parent: str = ""  # what its config.json says that it was loaded from
    is_named: bool = True  # whether some name says which model it is, so that another's name is another model
    # What has those of `shapes` that are no modules
    parameters: Mapping[str, str] = field(default_factory=dict)
    chats: ChatFiles | None = None  # what its files say of chats and ends; None: not known

    def compare(self, trained_on: str) -> BaseMatch:
        """Compare what an adapter calls its base with this one."""
        own = () if self.name == self.parent else (self.name,)  # which its config.json may have given
        names = [name for name in (*own, *self.other_names) if name]
        return compare_base(
            trained_on,
            names=names,
            parent=self.parent,
            checkpoint=self.checkpoint,
            is_named=bool(names or self.parent) and self.is_named,
        )

    @property
    def checkpoint(self) -> str:
        """The folder that it was read from; empty means unknown."""
        return "" if self.vocabulary is None else self.vocabulary.checkpoint

    @property
    def adaptable(self) -> dict[str, ModuleShape]:
        """The shapes of all modules that can carry LoRA, by path."""
        return {**self.shapes, **({} if self.vocabulary is None else self.vocabulary.shapes)}


def describe_base(
    model_dir: str | Path, *, name: str | None = None, config: ModelConfig | None = None
) -> BaseDescription:
    """Describe a checkpoint from its small files; raises CheckpointError for one that is not served.

    Its name is `name`, else the one config.json gives, else the folder's. `config` is what its config.json
    has been read as, if it has been.
    """
    folder = Path(model_dir)
    config = config or load_model_config(folder)
    shapes: dict[str, ModuleShape] = {}
    layout: dict[PackedKey, tuple[str, ...]] = {}
    parameters: dict[str, str] = {}
    for layer in range(config.num_layers):
        for packed in layer_modules(config, layer):
            paths = {f"{layer_path(layer)}.{part.path}": part for part in packed.parts}
            shapes |= {path: ModuleShape(part.in_features, part.out_features) for path, part in paths.items()}
            layout[PackedKey(layer, packed.name, packed.expert)] = tuple(paths)
            parameters |= {
                path: f"{layer_path(layer)}.{part.parameter}"
                for path, part in paths.items()
                if part.parameter
            }
    vocabulary = Vocabulary(
        config.vocab_size, config.hidden_size, config.tie_word_embeddings, checkpoint=str(folder)
    )
    folder_name, parent = base_name(folder), config.name or ""
    known_as = name or config.name or folder_name
    return BaseDescription(
        known_as,
        config.num_layers,
        shapes,
        layout,
        vocabulary,
        other_names=(name, folder_name) if name else (folder_name,),
        parent=parent,
        is_named=bool(name) or is_published(folder_name) or is_published(parent),
        parameters=parameters,
        chats=replace(read_chat_files(folder), eos_ids=config.eos_token_ids),
    )
