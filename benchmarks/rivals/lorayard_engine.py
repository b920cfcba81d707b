"""Our own engine on the workload."""

from __future__ import annotations

from benchmarks.rivals.protocol import Job, serve
from workers.engine import EngineConfig, LLMEngine, LoRARequest, SamplingParams


class OurEngine:
    """The engine in process, adapters loaded before the clock starts."""

    version = "this tree"

    def __init__(self, job: Job) -> None:
        num_adapters = len(job.adapters)
        self._workload = job.workload
        self.engine = LLMEngine(
            EngineConfig(
                model=job.model,
                dtype="bfloat16",
                max_num_seqs=job.workload.num_requests,
                enable_lora=num_adapters > 0,
                max_loras=max(1, num_adapters),
                max_lora_rank=job.workload.rank,
                num_threads=job.num_threads,
            )
        )
        self._loras = [
            LoRARequest(f"adapter-{index}", index + 1, folder) for index, folder in enumerate(job.adapters)
        ]
        for lora in self._loras:
            self.engine.add_lora(lora)

    def generate(self, prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
        """Serve all prompts in one mixed batch."""
        params = SamplingParams(max_tokens=num_new_tokens, temperature=0.0, ignore_eos=True)
        chosen = [self._workload.adapter_of(request) for request in range(len(prompts))]
        loras = [None if adapter is None else self._loras[adapter] for adapter in chosen]
        outputs = self.engine.generate(list(prompts), params, loras, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]


if __name__ == "__main__":
    serve(OurEngine)
