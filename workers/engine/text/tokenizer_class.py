"""What the class of a tokenizer in transformers makes of its files: names, and Llama's way to split text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, pre_tokenizers

DEFAULT_TOKENS: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
}
"""Special tokens that a class has if no file names others."""
REBUILT = frozenset(DEFAULT_TOKENS)
"""Classes that take the vocabulary of tokenizer.json, and added tokens from what lists them first."""
MARKS_ALL_NAMED = frozenset({"Qwen2Tokenizer"})
"""Classes that make special whatever token has a name."""
_SPACE = "▁"
_SIGNS = {
    "LlamaTokenizer": _SPACE,
    "GemmaTokenizer": _SPACE,
    "Qwen2Tokenizer": "ByteLevel",
    "GPT2Tokenizer": "ByteLevel",
}
"""What a tokenizer.json that such a class has saved says of how text is split."""
_ANY = "TokenizersBackend"  # transformers' class for whatever tokenizer.json says
_OF_MODEL = {
    "mistral": _ANY,
    "mixtral": _ANY,
    "phi3": _ANY,
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
}
_OVERRULES_FILES = frozenset({"phi3", "qwen2"})  # their checkpoints often name another family's class


def tokenizer_class(
    config: Mapping[str, Any],  # tokenizer_config.json
    model: Mapping[str, Any],  # config.json
    tokenizer: Mapping[str, Any],  # tokenizer.json
) -> str:
    """Return the class that transformers' `AutoTokenizer` takes, without "Fast"."""
    named = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "").removesuffix("Fast")
    model_type = str(model.get("model_type"))
    usual = _OF_MODEL.get(model_type)
    if not named:
        return usual or _ANY
    if named == "LlamaTokenizer" and model_type not in _OVERRULES_FILES and _is_byte_level(tokenizer):
        return _ANY
    if usual is None or usual == named:
        return named
    if usual == _ANY:
        return _ANY
    return usual if model_type in _OVERRULES_FILES else named


def splits_anew(class_name: str) -> bool:
    """Whether a class splits text by tokenizer_config.json, whatever tokenizer.json says of it."""
    return class_name == "LlamaTokenizer"


def split_anew(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Have a tokenizer split and join text as transformers 5 makes `LlamaTokenizer` do it."""
    prefix = config.get("add_prefix_space")
    has_prefix = True if prefix is None else bool(prefix)
    scheme = "never" if not has_prefix else "always" if config.get("legacy") else "first"
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme, split=False)
    join = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    backend.decoder = decoders.Sequence([*join, *strip])


def missing_sign(name: str, tokenizer: Mapping[str, Any]) -> str | None:
    """Return what tokenizer.json lacks of the way in which a class splits text; None if nothing is known."""
    sign = _SIGNS.get(name.removesuffix("Fast"))
    split = str([tokenizer.get(key) for key in ("normalizer", "pre_tokenizer")])
    return sign if sign is not None and sign not in split and not _is_byte_level(tokenizer) else None


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    parts = [tokenizer.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    return "'ByteLevel'" in str(parts)
