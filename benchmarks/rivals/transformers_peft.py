"""transformers on the workload: the plain model, or PEFT with every row's own adapter in one batch."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import torch
import transformers

from benchmarks.rivals.protocol import Job, serve

BASE_NAME = "__base__"
"""How PEFT calls a row without an adapter."""


class TransformersPeft:
    """`generate` of transformers; with adapters, PEFT's `adapter_names`."""

    version = f"transformers {transformers.__version__}, peft {peft.__version__}"

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.num_threads)
        # PEFT 0.21 asks transformers 5 for an attribute that is going away.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        self._workload = job.workload
        base = transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16)
        self._names = [f"adapter-{index}" for index in range(len(job.adapters))]
        self._model: Any = _with_adapters(base, self._names, job.adapters)
        self._model.eval()

    def generate(self, prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
        """Serve all prompts in one batch."""
        chosen = [self._workload.adapter_of(request) for request in range(len(prompts))]
        names = [BASE_NAME if adapter is None else self._names[adapter] for adapter in chosen]
        return self._run(prompts, num_new_tokens, {"adapter_names": names} if self._names else {})

    def _run(self, prompts: list[list[int]], num_new_tokens: int, more: dict[str, Any]) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=num_new_tokens,
                max_new_tokens=num_new_tokens,
                eos_token_id=None,
                pad_token_id=0,
                **more,
            )
        answers: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return answers


def _with_adapters(base: Any, names: list[str], folders: list[str]) -> Any:
    if not names:
        return base
    model = peft.PeftModel.from_pretrained(base, folders[0], adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    return model


if __name__ == "__main__":
    serve(TransformersPeft)
