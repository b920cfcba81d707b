"""A pool: the workers whose answers are interchangeable, named by what makes them so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

GenerationConfigUse = Literal["auto", "none"]
"""Whether what a job leaves unset is as the base's generation_config.json says, or as without that file."""


DEFAULT_MODEL_LEN: Final = 2048

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


class PoolInfo(BaseModel):
    """What the leader publishes of its pool for clients."""

    model_config = ConfigDict(frozen=True)

    pool: str
    model_name: str
    max_model_len: int
    max_prompt_bytes: int


def pool_id(
    model_dir: Path,
    dtype: str,
    quantization: str | None = None,
    generation_config: GenerationConfigUse = "auto",
) -> str:
    """Name the pool of a checkpoint: digest config, safetensors headers, sizes, dtype and quantisation.

    Headers and sizes stand for the weights, so that a 100 GB checkpoint is named in milliseconds.
    `generation_config` counts unless it is "auto". Raises FileNotFoundError if the directory holds no
    config.json or no safetensors file.
    """
    digest = hashlib.sha256(f"{dtype}\n{quantization}\n".encode())
    if generation_config != "auto":
        digest.update(f"generation_config {generation_config}\n".encode())
    digest.update(_read_config(model_dir))
    # What is not a regular file is not looked into: a FIFO would never end. Workers refuse it by name.
    files = sorted(file for file in model_dir.glob("*.safetensors") if file.is_file())
    if not files:
        raise FileNotFoundError(f"{model_dir} holds no *.safetensors: point LORAYARD_MODEL at a checkpoint")
    for file in files:
        digest.update(f"{file.name}\n{file.stat().st_size}\n".encode())
        digest.update(_safetensors_header(file))
    return digest.hexdigest()[:16]


def model_len(model_dir: Path, chosen: int | None) -> int:
    """Tell how many tokens a job of the pool may have, prompt and answer; scheduler and workers both ask.

    That is what the operator chose (an engine refuses what its model was not made for), else what the
    checkpoint was made for before any scaling of its positions, but at most DEFAULT_MODEL_LEN: each
    sequence in flight may need so much of the cache. Raises FileNotFoundError if there is no config.json.
    """
    if chosen is not None:
        return chosen
    config = json.loads(_read_config(model_dir))
    limits = (config.get("max_position_embeddings"), config.get("original_max_position_embeddings"))
    return min([DEFAULT_MODEL_LEN, *(int(limit) for limit in limits if limit)])


def tokenizer_digest(model_dir: Path) -> str:
    """Name a checkpoint's tokenizer and chat template: a digest of their files' names and bytes.

    Workers of one pool have it in common, though the pool's id does not cover it.
    """
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = model_dir / name
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{name}\n{len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:16]


def _read_config(model_dir: Path) -> bytes:
    path = model_dir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{model_dir} holds no config.json: point LORAYARD_MODEL at a Hugging Face checkpoint"
        )
    return path.read_bytes()


def _safetensors_header(file: Path) -> bytes:
    """Read a safetensors header: eight bytes of little-endian length, then JSON."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return stream.read(min(length, file.stat().st_size))
