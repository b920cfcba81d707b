"""The sampler's time per step for several kinds of requests: `python -m benchmarks.sampler`."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from kernels.registry import build
from workers.engine.core.step_input import Penalties, SamplingInput, TokenMasks
from workers.engine.sampling.sampler import choose

_NUM_ROWS, _VOCAB_SIZE = 32, 49152
_REPEATS = 30
# (temperature, top_k, top_p); a kind with several mixes them row by row
_KINDS = {
    "greedy": [(0.0, _VOCAB_SIZE, 1.0)],
    "temperature": [(0.8, _VOCAB_SIZE, 1.0)],
    "top-k 50": [(1.0, 50, 1.0)],
    "top-p 0.9": [(1.0, _VOCAB_SIZE, 0.9)],
    "mixed": [(0.0, _VOCAB_SIZE, 1.0), (0.8, _VOCAB_SIZE, 1.0), (1.0, 50, 0.95), (1.0, _VOCAB_SIZE, 0.9)],
}


def main() -> None:
    """Print the best time of every kind, for peaked logits as trained models give them and for flat ones."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(_NUM_ROWS, _VOCAB_SIZE, generator=generator)
    uniforms = torch.rand(_NUM_ROWS, dtype=torch.float64, generator=generator)
    print(f"[{_NUM_ROWS}, {_VOCAB_SIZE}], {torch.get_num_threads()} threads, best of {_REPEATS}, ms per step")
    print(f"{'':12s} {'peaked':>8s} {'flat':>8s}")
    for name, settings in _KINDS.items():
        _print_row(name, normal, _input(settings, uniforms))
    greedy = _input(_KINDS["greedy"], uniforms)
    _print_row(
        "min-p 0.05",
        normal,
        replace(_input(_KINDS["temperature"], uniforms), min_ps=torch.full((_NUM_ROWS,), 0.05)),
    )
    _print_row("penalties", normal, replace(greedy, penalties=_penalties(generator)))
    _print_row("masks", normal, replace(greedy, masks=_masks(generator)))


def _print_row(name: str, normal: Tensor, sampling: SamplingInput) -> None:
    times = [_best_ms(normal * spread, sampling) for spread in (6.0, 1.0)]
    print(f"{name:12s} {times[0]:8.2f} {times[1]:8.2f}")


def _input(settings: list[tuple[float, int, float]], uniforms: Tensor) -> SamplingInput:
    rows = [settings[row % len(settings)] for row in range(_NUM_ROWS)]
    return SamplingInput(
        num_rows=_NUM_ROWS,
        rows=torch.arange(_NUM_ROWS),
        all_greedy=all(temperature == 0.0 for temperature, _, _ in rows),
        temperatures=torch.tensor([temperature for temperature, _, _ in rows]),
        top_ks=torch.tensor([top_k for _, top_k, _ in rows]),
        top_ps=torch.tensor([top_p for _, _, top_p in rows], dtype=torch.float64),
        uniforms=uniforms,
    )


def _penalties(generator: torch.Generator) -> Penalties:
    """Return penalties on 500 tokens of every row."""
    rows = torch.arange(_NUM_ROWS).repeat_interleave(500)
    token_ids = torch.stack(
        [torch.randperm(_VOCAB_SIZE, generator=generator)[:500] for _ in range(_NUM_ROWS)]
    )
    ones = torch.ones(rows.shape[0])
    return Penalties(rows, token_ids.flatten(), factors=ones * 1.1, deductions=ones * 0.1)


def _masks(generator: torch.Generator) -> TokenMasks:
    bits = torch.randint(-(2**31), 2**31, (_NUM_ROWS, _VOCAB_SIZE // 32), generator=generator)
    return TokenMasks(torch.arange(_NUM_ROWS), bits.int())


def _best_ms(logits: Tensor, sampling: SamplingInput) -> float:
    best_s, draw = float("inf"), build("cpu", torch.float32).draw
    with torch.inference_mode():
        for _ in range(_REPEATS):
            began_s = time.perf_counter()
            choose(logits, sampling, draw).read()
            best_s = min(best_s, time.perf_counter() - began_s)
    return best_s * 1000.0


if __name__ == "__main__":
    main()
