"""Compares this engine with transformers and PEFT: chats in float32, greedy, token for token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.real.folders import Folders
from examples.real.tasks import SMALL_TALK, TASKS, Chat, held_out
from examples.real.training import MAX_RANK
from examples.tiny.oracle import logit_gaps
from workers.engine import EngineConfig, LLMEngine, LoRARequest, SamplingParams

MAX_TOKENS = 32


@dataclass(frozen=True, slots=True)
class OracleAnswer:
    """What transformers and PEFT chose, and by how many logits each token led the next best."""

    token_ids: list[int]
    gaps: list[float]  # one per token


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two answers part, and the oracle's lead there in logits."""

    chat: Chat
    position: int
    gap: float


def questions() -> list[Chat]:
    """Return 80 chats: small talk for the base and both adapters, and held-out examples of the tasks."""
    own = [Chat(name, example.text) for name, task in TASKS.items() for example in held_out(task, 15)]
    bare = [Chat(None, example.text) for task in TASKS.values() for example in held_out(task, 10)]
    return own + bare + [Chat(name, text) for text in SMALL_TALK for name in (None, *TASKS)]


def oracle_answers(folders: Folders, asked: Sequence[Chat]) -> list[OracleAnswer]:
    """Answer with transformers and PEFT, one batch an adapter."""
    tokenizer = AutoTokenizer.from_pretrained(folders.base, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folders.base, dtype=torch.float32)
    first, *others = folders.adapters
    model = PeftModel.from_pretrained(model, folders.adapters[first], adapter_name=first)
    for name in others:
        model.load_adapter(str(folders.adapters[name]), adapter_name=name)
    model.eval()
    found: dict[Chat, OracleAnswer] = {}
    for adapter in (None, *TASKS):
        group = [chat for chat in asked if chat.adapter == adapter]
        if adapter is None:
            with model.disable_adapter():
                answers = _generate(model, tokenizer, group)
        else:
            model.set_adapter(adapter)
            answers = _generate(model, tokenizer, group)
        found |= zip(group, answers, strict=True)
    return [found[chat] for chat in asked]


@torch.inference_mode()
def _generate(model: Any, tokenizer: Any, asked: Sequence[Chat]) -> list[OracleAnswer]:
    encoded = tokenizer.apply_chat_template(
        [chat.messages for chat in asked],
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
    )
    result = model.generate(
        **encoded,
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    chosen = result.sequences[:, encoded["input_ids"].shape[1] :].tolist()
    gaps = logit_gaps(torch.stack(result.logits, dim=1)).tolist()
    lengths = [_length(row, tokenizer.eos_token_id) for row in chosen]
    return [OracleAnswer(row[:n], lead[:n]) for row, lead, n in zip(chosen, gaps, lengths, strict=True)]


def _length(token_ids: list[int], eos_id: int) -> int:
    """Count the tokens up to the end of the turn, which is one of them."""
    return token_ids.index(eos_id) + 1 if eos_id in token_ids else len(token_ids)


def engine_answers(folders: Folders, asked: Sequence[Chat], num_threads: int | None) -> list[list[int]]:
    """Answer with this engine, base and adapters mixed in every batch; returns token ids."""
    loras = {
        name: LoRARequest(name, number, str(folder))
        for number, (name, folder) in enumerate(folders.adapters.items(), 1)
    }
    engine = LLMEngine(
        EngineConfig(
            model=str(folders.base),
            dtype="float32",
            enable_lora=True,
            max_loras=len(loras),
            max_lora_rank=MAX_RANK,
            max_num_seqs=16,
            max_model_len=512,
            num_threads=num_threads,
        )
    )
    try:
        outputs = engine.chat(
            [chat.messages for chat in asked],
            SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0),
            [None if chat.adapter is None else loras[chat.adapter] for chat in asked],
        )
    finally:
        engine.close()
    return [list(output.outputs[0].token_ids) for output in outputs]


def differences(
    asked: Sequence[Chat], ours: Sequence[list[int]], theirs: Sequence[OracleAnswer]
) -> list[Difference]:
    """Name the first position of each answer that is not the oracle's."""
    found = []
    for chat, token_ids, oracle in zip(asked, ours, theirs, strict=True):
        if token_ids != oracle.token_ids:
            shared = zip(token_ids, oracle.token_ids, strict=False)
            same = [one == other for one, other in shared]
            position = same.index(False) if False in same else len(same)
            # Ours went on where the oracle had ended.
            gap = oracle.gaps[position] if position < len(oracle.gaps) else float("inf")
            found.append(Difference(chat, position, gap))
    return found


def check(folders: Folders, num_threads: int | None) -> int:
    """Compare 80 answers and print what came of it; returns the exit status, 0 if all are equal."""
    asked = questions()
    theirs = oracle_answers(folders, asked)
    ours = engine_answers(folders, asked, num_threads)
    found = differences(asked, ours, theirs)
    for difference in found:
        print(
            f"differs: adapter={difference.chat.adapter} position={difference.position} "
            f"top two logits apart by {difference.gap:.6f}: {difference.chat.text}"
        )
    print(
        f"check: equal={len(asked) - len(found)}/{len(asked)} tokens={sum(map(len, ours))} "
        f"smallest_lead={min(min(answer.gaps) for answer in theirs):.6f} dtype=float32"
    )
    return 1 if found else 0
