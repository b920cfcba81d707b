"""What the launches of attention compile to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from triton.runtime.jit import JITFunction

from kernels.attention import triton_paged_attention, triton_rotate_store
from kernels.attention.paged_attention import HeadNorms
from tests.unit.kernels.attention_cases import make_case
from tests.unit.kernels.compiled import ARCHITECTURES, Recorder, compile_launch

DECODE, PROMPTS = [(1, 600), (1, 20)], [(1, 600), (40, 0)]


@pytest.mark.parametrize(
    ("chunks", "head_dim", "softcap", "max_registers", "arch"),
    [
        *((DECODE, 128, None, 128, arch) for arch in ARCHITECTURES),
        *((PROMPTS, 128, None, 192, arch) for arch in ARCHITECTURES),
        *((PROMPTS, 256, 50.0, 224, arch) for arch in (90, 120)),
    ],
)
def test_what_is_launched_compiles_without_spills_and_reads_whole_words(
    arch: int,
    chunks: list[tuple[int, int]],
    head_dim: int,
    softcap: float | None,
    max_registers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = make_case(chunks, num_heads=8, num_kv_heads=2, head_dim=head_dim, dtype=torch.bfloat16)
    case.softcap = softcap
    case.head_norms = HeadNorms(torch.ones(head_dim), torch.ones(head_dim), 1e-6)
    kernels: dict[str, JITFunction] = {}
    recorders: dict[str, Recorder] = {}
    for module, name in (
        (triton_rotate_store, "rotate_store_kernel"),
        (triton_paged_attention, "attend_splits_kernel"),
        (triton_paged_attention, "merge_splits_kernel"),
        (triton_paged_attention, "attend_prompts_kernel"),
    ):
        kernels[name], recorders[name] = getattr(module, name), Recorder()
        monkeypatch.setattr(module, name, recorders[name])
    case.run(triton_paged_attention.paged_attention_triton)

    for name, kernel in kernels.items():
        compiled = compile_launch(kernel, recorders[name].launches[0], arch=arch, tmp_path=tmp_path)

        assert f".target sm_{arch}" in compiled.ptx
        assert (name, compiled.stack_bytes, compiled.num_narrow) == (name, 0, 0)
        assert compiled.num_registers <= max_registers
