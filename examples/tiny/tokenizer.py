"""The character tokenizer: one token for each printable ASCII character, bytes for everything else."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Sequence
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from examples.tiny.tasks import TASKS

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
TAGS = {name: f"<|{name}|>" for name in TASKS}
_SPECIAL = [PAD, BOS, EOS, UNK, *TAGS.values()]
_PRINTABLE = [chr(code) for code in range(0x20, 0x7F)]

# Whatever else a conversation holds, the prompt is what the user said last.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{{ (messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list)[-1] }}"
)


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer; any text survives encode and decode, by way of byte tokens if need be."""
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *_PRINTABLE]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token=UNK))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    tokenizer.decoder = Sequence([ByteFallback(), Fuse()])
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as Hugging Face checkpoints have them."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
