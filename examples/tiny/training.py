"""The training loop that the base and every adapter share, and the saving of both."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch.nn import Module
from transformers import GenerationConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

from examples.tiny.batches import Batch, adapter_examples, base_examples, batches
from examples.tiny.recipe import ADAPTERS, BASE_NAME, Schedule, base_config
from examples.tiny.tokenizer import BOS_ID, EOS_ID, PAD_ID, save_tokenizer


def train_base(folder: Path, schedule: Schedule) -> None:
    """Train the base from nothing and save it in `folder` as a Hugging Face checkpoint."""
    torch.manual_seed(schedule.seed)
    rng = random.Random(schedule.seed)
    model = LlamaForCausalLM(base_config())
    fit("base", model, batches(base_examples(rng), schedule.batch_size, rng), schedule)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=False
    )
    save_tokenizer(folder)
    model.save_pretrained(folder)
    name_base(folder / "config.json", BASE_NAME)


def train_adapter(task: str, base: Path, folder: Path, schedule: Schedule) -> None:
    """Train one adapter on the base saved in `base`, and save it in `folder` as PEFT does."""
    torch.manual_seed(schedule.seed)
    rng = random.Random(f"{task}/{schedule.seed}")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), ADAPTERS[task].lora_config())
    fit(task, model, batches(adapter_examples(task, rng), schedule.batch_size, rng), schedule)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    settle_config(folder / "adapter_config.json", BASE_NAME)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form that PEFT adds


def fit(
    name: str, model: Module, data: Iterator[Batch], schedule: Schedule, *, report_every: int = 100
) -> None:
    """Train what requires gradients in `model`, one batch a step, and print the loss now and then."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=schedule.peak_lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    scheduler = get_cosine_schedule_with_warmup(optimizer, schedule.num_warmup_steps, schedule.num_steps)
    model.train()
    start_s = time.monotonic()
    for step in range(1, schedule.num_steps + 1):
        batch = next(data)
        loss = model(input_ids=batch.token_ids, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        if step % report_every == 0:
            print(f"{name} step={step} loss={loss.item():.5f} s={time.monotonic() - start_s:.0f}", flush=True)


def settle_config(path: Path, base_name: str) -> None:
    """Make what PEFT saved the same everywhere: it records a local folder, and targets in hash order."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_name
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    _write_json(path, config)


def name_base(path: Path, name: str) -> None:
    """Give the base the name that the adapters know it by."""
    _write_json(path, json.loads(path.read_text()) | {"_name_or_path": name})


def _write_json(path: Path, config: dict[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
