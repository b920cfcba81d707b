"""How long a worker's steps and loads take: constants that the engine's benchmarks measured."""

from __future__ import annotations

from dataclasses import dataclass

_MIB_PER_RANK = 5.0
"""Rank 16 on all seven projections of Llama-3-8B in bfloat16 is 80 MiB."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """One worker's machine. The defaults are an H100 with Llama-3-8B's geometry in bfloat16, context 512.

    Steps of 1, 8, 32 and 64 rows took 6.19, 6.45, 7.32 and 8.23 ms; with 1, 8 and 32 adapters of rank 16
    among 32 rows 0.53, 0.88 and 2.11 ms more (`results/gpu-h100-2026-11-27.md`). Rank 64 in place of 16 added
    1.75 ms to the kernels of a step with 32 of them, and serving 64 prompts of 256 tokens 0.5 s to the time
    of its decode steps (`results/gpu-h100-2026-11-26.md`).
    """

    step_s: float = 6.17e-3
    row_s: float = 0.0324e-3
    """Of each sequence that decodes."""
    lora_s: float = 0.477e-3
    """Of a step with any adapter."""
    adapter_s: float = 0.034e-3
    """Of each different adapter in a step."""
    rank_s: float = 0.00107e-3
    """Of each unit of these adapters' ranks."""
    prompt_token_s: float = 0.03e-3
    max_num_batched_tokens: int = 2048
    load_s: float = 0.05
    """Of a load from the store, whatever its size."""
    store_bytes_per_s: float = 105e6
    """Adding an adapter of rank 16 that is on disk took 0.78 to 0.88 s: it is read, checked and packed."""
    host_bytes_per_s: float = 7.0e9
    """From a worker's memory to its device."""
    admit_s: float = 0.010
    """From a job's submission to its place in the backlog."""
    turn_s: float = 0.005
    """Of the leader: what arrives during a turn is planned in the next one."""
    dispatch_s: float = 0.010
    """From a plan to the engine: lease, message, hand-over."""
    report_s: float = 0.015
    """From a sequence's end to the leader: a group of the committer gathers for 10 ms."""

    def step_time_s(self, num_rows: int, num_adapters: int, sum_of_ranks: int) -> float:
        """Return how long one decode step takes."""
        time_s = self.step_s + self.row_s * num_rows
        if num_adapters:
            time_s += self.lora_s + self.adapter_s * num_adapters + self.rank_s * sum_of_ranks
        return time_s

    def alone_s(self, prompt_tokens: int, output_tokens: int, rank: int) -> float:
        """Return the latency of a request alone on a worker that has its adapter in a slot."""
        return self.prompt_token_s * prompt_tokens + output_tokens * self.step_time_s(1, rank > 0, rank)

    def jobs_per_s(self, batch: int, slots: int, job: tuple[float, float], rank: float) -> float:
        """Return what one worker can do if its batch is always full: `job` has mean prompt and output."""
        prompt_tokens, output_tokens = job
        step_s = self.step_time_s(batch, slots, round(slots * rank))
        return 1.0 / (output_tokens * step_s / batch + prompt_tokens * self.prompt_token_s)

    @staticmethod
    def adapter_bytes(rank: int) -> int:
        """Return the size of an adapter."""
        return int(rank * _MIB_PER_RANK * 2**20)
