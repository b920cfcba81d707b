"""A small Llama with random weights, its tokenizer, and what transformers says about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM

from workers.engine import EngineConfig, LLMEngine

BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('tools are not served') }}{% endif %}"
    "[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

Greedy = Callable[[list[int], int], list[int]]


def save_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer: one token per byte, so that characters span several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": BOS_ID, "</s>": EOS_ID, "<pad>": PAD_ID}
    vocab |= {symbol: index + 3 for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS_ID)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')


@pytest.fixture(scope="session")
def llama() -> LlamaForCausalLM:
    """A random Llama with grouped queries; its weights are large enough that no two logits are close."""
    torch.manual_seed(20)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.25,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def checkpoint(llama: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Llama as a Hugging Face checkpoint."""
    folder = tmp_path_factory.mktemp("random-llama")
    llama.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def greedy(llama: LlamaForCausalLM) -> Greedy:
    """transformers' greedy continuation of one prompt, end-of-sequence ignored."""

    @cache
    def continue_greedily(prompt: tuple[int, ...], num_tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = llama.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                eos_token_id=None,
                pad_token_id=PAD_ID,
            )
        return out[0, len(prompt) :].tolist()

    return lambda prompt, num_tokens: continue_greedily(tuple(prompt), num_tokens)


@pytest.fixture
def make_engine(checkpoint: Path) -> Callable[..., LLMEngine]:
    """Build engines on the random Llama; keywords go to `EngineConfig`."""

    def make(**settings: object) -> LLMEngine:
        return LLMEngine(EngineConfig(model=str(checkpoint), **settings))  # type: ignore[arg-type]

    return make


@pytest.fixture
def prompts() -> list[list[int]]:
    """Prompts of very different lengths, in no order."""
    generator = torch.Generator().manual_seed(7)
    lengths = [5, 1, 33, 17, 2, 90, 16, 48, 9, 3, 31, 64]
    return [torch.randint(3, 259, (length,), generator=generator).tolist() for length in lengths]
