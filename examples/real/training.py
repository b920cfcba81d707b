"""Trains one adapter per task on the base: PEFT, float32, minutes on a CPU."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.real.checkpoint import BASE_NAME
from examples.real.tasks import Exchange, Task, example_stream, messages
from examples.tiny.batches import Batch, Example, collate
from examples.tiny.recipe import ATTENTION, MLP, Schedule
from examples.tiny.training import fit, settle_config

_SEED = 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """One adapter's LoRA shape, and how many steps of four examples it trains."""

    rank: int
    target_modules: tuple[str, ...]
    num_steps: int


RECIPES: dict[str, Recipe] = {
    "sentiment": Recipe(8, ("q_proj", "v_proj"), num_steps=40),
    "orders": Recipe(16, ATTENTION + MLP, num_steps=28),
}
MAX_RANK = max(recipe.rank for recipe in RECIPES.values())


def train_adapter(task: Task, base: Path, folder: Path) -> None:
    """Train the adapter of `task` on the checkpoint `base` and save it in `folder` as PEFT does."""
    torch.manual_seed(_SEED)
    recipe = RECIPES[task.name]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            target_modules=list(recipe.target_modules),
        ),
    )
    schedule = Schedule(recipe.num_steps, peak_lr=2e-3, seed=_SEED, batch_size=4, num_warmup_steps=4)
    fit(
        task.name,
        model,
        _batches(task, AutoTokenizer.from_pretrained(base), schedule),
        schedule,
        report_every=5,
    )
    model.save_pretrained(str(folder), save_embedding_layers=False)
    settle_config(folder / "adapter_config.json", BASE_NAME)


def _batches(task: Task, tokenizer: Any, schedule: Schedule) -> Iterator[Batch]:
    examples = example_stream(task, "train", random.Random(f"{task.name}/{schedule.seed}"))
    while True:
        chosen = [_encode(tokenizer, next(examples)) for _ in range(schedule.batch_size)]
        yield collate(chosen, tokenizer.pad_token_id)


def _encode(tokenizer: Any, exchange: Exchange) -> Example:
    """Return the chat's prompt as its template has it, then the answer and the end of the turn."""
    prompt = tokenizer.apply_chat_template(
        messages(exchange.text), add_generation_prompt=True, return_dict=True
    )["input_ids"]
    answer = tokenizer(exchange.answer, add_special_tokens=False)["input_ids"]
    return Example([*prompt, *answer, tokenizer.eos_token_id], len(prompt))
