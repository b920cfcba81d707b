"""A small Llama with random weights, its tokenizer, and what transformers says about it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unit.workers.engine.loader_pool import LoaderPool, shared_loaders
from workers.engine import EngineConfig, LLMEngine, LoRARequest

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
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS_ID)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')


@pytest.fixture(scope="session", autouse=True)
def loader_processes() -> Iterator[LoaderPool]:
    """The loader processes that this session's engines share, one engine after the other."""
    with shared_loaders() as pool:
        yield pool


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


@pytest.fixture(scope="session")
def adapter_configs() -> dict[str, LoraConfig]:
    """LoRA shapes of every kind the engine serves."""
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return {
        "attention": LoraConfig(r=4, lora_alpha=8, target_modules=attention),
        "mlp": LoraConfig(r=8, lora_alpha=8, target_modules=["gate_proj", "up_proj", "down_proj"]),
        "one-module": LoraConfig(r=16, lora_alpha=16, target_modules=["v_proj"]),
        "everything": LoraConfig(r=5, lora_alpha=10, target_modules="all-linear", use_rslora=True),
        "patterns": LoraConfig(
            r=4,
            lora_alpha=4,
            target_modules=["q_proj", "up_proj", "down_proj"],
            rank_pattern={"up_proj": 9},
            alpha_pattern={"q_proj": 12},
        ),
        "last-layer": LoraConfig(
            r=6, lora_alpha=12, target_modules=["o_proj", "down_proj"], layers_to_transform=[2]
        ),
    }


@pytest.fixture(scope="session")
def adapters(
    llama: LlamaForCausalLM, adapter_configs: dict[str, LoraConfig], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, LoRARequest]:
    """Adapters with random A and B, large enough to change every answer."""
    folder = tmp_path_factory.mktemp("adapters")
    requests = {}
    for number, (name, config) in enumerate(adapter_configs.items(), start=1):
        torch.manual_seed(100 + number)
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5 for an attribute that is going away.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            model = get_peft_model(copy.deepcopy(llama), config)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(str(folder / name))
        requests[name] = LoRARequest(name, number, str(folder / name))
    return requests


@pytest.fixture(scope="module", autouse=True)
def look_ahead(request: pytest.FixtureRequest) -> int:
    """How far the engines of this module's tests look ahead; 0, unless the module is marked `BOTH`."""
    return getattr(request, "param", 0)


@pytest.fixture
def make_engine(checkpoint: Path, look_ahead: int) -> Callable[..., LLMEngine]:
    """Build engines on the random Llama; keywords go to `EngineConfig`."""

    def make(**settings: object) -> LLMEngine:
        # One thread: on shared cores, threads that wait for each other cost more than they give.
        config = EngineConfig(model=str(checkpoint), **{"num_threads": 1, **settings})  # type: ignore[arg-type]
        return LLMEngine(config, look_ahead=look_ahead)

    return make


@pytest.fixture
def prompts() -> list[list[int]]:
    """Prompts of very different lengths, in no order."""
    generator = torch.Generator().manual_seed(7)
    lengths = [5, 1, 33, 17, 2, 90, 16, 48, 9, 3, 31, 64]
    return [torch.randint(3, 259, (length,), generator=generator).tolist() for length in lengths]
