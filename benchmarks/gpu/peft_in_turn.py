"""transformers with PEFT on the card: one adapter after the other, each with its own requests as a batch."""

from __future__ import annotations

import gc
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu.device import Device
from benchmarks.gpu.folders import model_config
from benchmarks.gpu.shapes import Shapes
from workers.engine import LoRARequest


class PeftInTurn:
    """A random Llama with adapters loaded, which has run each batch once before it is timed."""

    def __init__(self, device: Device, shapes: Shapes, loras: Sequence[LoRARequest]) -> None:
        # Imported here: a machine without them loses this comparison alone.
        import peft
        import transformers

        self.name = f"transformers {transformers.__version__} + PEFT {peft.__version__}"
        self._device = device
        dtype = torch.float32 if device.is_rehearsal else torch.bfloat16
        config = transformers.LlamaConfig(**model_config(shapes, ties_head=True))
        with torch.device(device.name):
            base = transformers.LlamaForCausalLM._from_config(config, dtype=dtype)
        first, *others = loras
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model: Any = peft.PeftModel.from_pretrained(
                base, first.lora_path, adapter_name=first.lora_name, autocast_adapter_dtype=False
            )
            for lora in others:
                self._model.load_adapter(
                    lora.lora_path, adapter_name=lora.lora_name, autocast_adapter_dtype=False
                )
        self._model.to(device=device.name, dtype=dtype).eval()

    def serve(self, prompts: list[list[int]], loras: Sequence[LoRARequest], num_new_tokens: int) -> float:
        """Serve all requests, grouped by adapter; return the seconds of the second time."""
        members: dict[str, list[list[int]]] = defaultdict(list)
        for prompt, lora in zip(prompts, loras, strict=True):
            members[lora.lora_name].append(prompt)
        name, batch = next(iter(members.items()))
        self._generate(name, batch, 2)  # what is set up at the first use is not counted
        began_s = time.perf_counter()
        for name, batch in members.items():
            self._generate(name, batch, num_new_tokens)
        self._device.synchronize()
        return time.perf_counter() - began_s

    def close(self) -> None:
        """Free the device's memory."""
        self._model = None
        gc.collect()
        if not self._device.is_rehearsal:
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _generate(self, name: str, prompts: list[list[int]], num_new_tokens: int) -> None:
        self._model.set_adapter(name)
        token_ids = torch.tensor(prompts, device=self._device.name)
        out = self._model.generate(
            input_ids=token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=num_new_tokens,
            min_new_tokens=num_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        if out.shape[1] != token_ids.shape[1] + num_new_tokens:
            raise RuntimeError(f"transformers made {out.shape[1] - token_ids.shape[1]} tokens")
