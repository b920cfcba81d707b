"""What the launches of attention compile to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from triton.runtime.jit import JITFunction

from kernels.attention import triton_paged_attention, triton_rotate_store
from kernels.attention.paged_attention import HeadNorms
from tests.unit.kernels.attention_cases import make_case
from tests.unit.kernels.compiled import ARCHITECTURES, Recorder, compile_launch, launch_on

MIXED = [(1, 600), (40, 0)]
SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
"""What a program may have of an architecture's shared memory."""
MAX_REGISTERS = {
    "rotate_store_kernel": 168,
    "attend_splits_kernel": 208,
    "merge_splits_kernel": 128,
    "attend_prompts_kernel": 255,
}
READ_BEFORE_WAIT: dict[str, set[str] | None] = {
    "rotate_store_kernel": {"sequence_rows_ptr", "block_tables_ptr", "q_norm_ptr", "k_norm_ptr"},
    "attend_splits_kernel": {"sequence_rows_ptr"},
    "merge_splits_kernel": {"sequence_rows_ptr"},
    "attend_prompts_kernel": None,
}
SPILLS = 96
"""Bytes of float32's stack where a head of 128 is multiplied without tensor cores."""


@pytest.mark.parametrize(
    ("head_dim", "softcap", "window", "dtype", "arch", "has_sinks"),
    [
        *((128, None, None, torch.bfloat16, arch, False) for arch in ARCHITECTURES),
        *((256, 50.0, None, torch.bfloat16, arch, False) for arch in (90, 120)),
        (64, None, None, torch.float16, 90, False),
        (64, None, 128, torch.bfloat16, 90, True),
        (96, None, 40, torch.bfloat16, 90, False),
        (128, None, None, torch.float32, 90, False),
    ],
)
def test_what_is_launched_compiles_without_spills_and_reads_whole_words(
    arch: int,
    head_dim: int,
    softcap: float | None,
    window: int | None,
    dtype: torch.dtype,
    has_sinks: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch_on(arch, monkeypatch)
    case = make_case(MIXED, num_heads=8, num_kv_heads=2, head_dim=head_dim, dtype=dtype)
    case.softcap, case.window = softcap, window
    case.sinks = torch.zeros(8) if has_sinks else None
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
        assert (name, compiled.num_narrow) == (name, 0)
        assert compiled.stack_bytes <= (SPILLS if dtype is torch.float32 else 0)
        assert compiled.num_registers <= MAX_REGISTERS[name], name
        assert compiled.shared_bytes <= SHARED_BYTES[arch]
        assert compiled.read_before_wait == (None if arch < 90 else READ_BEFORE_WAIT[name])
        if name == "attend_prompts_kernel" and dtype is not torch.float32:
            # Tokens come while others are multiplied; on Hopper four warps multiply together.
            assert "cp.async.cg" in compiled.ptx
            assert (arch != 90) or "wgmma.mma_async" in compiled.ptx


def test_partial_sums_are_bounded_and_prompts_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case([(1, 600), (40, 0)])
    case.block_tables = torch.zeros(2, 8192, dtype=torch.int32)
    kept = {
        name: Recorder() for name in ("attend_splits_kernel", "merge_splits_kernel", "attend_prompts_kernel")
    }
    for name, recorder in kept.items():
        monkeypatch.setattr(triton_paged_attention, name, recorder)
    monkeypatch.setattr(triton_rotate_store, "rotate_store_kernel", Recorder())

    out = case.run(triton_paged_attention.paged_attention_triton)

    assert out.shape == (41, 6 * 16)
    parts, sums = kept["attend_splits_kernel"].launches[0].args[6:8]
    assert (parts.shape, sums.shape) == ((2, 6, 16, 16), (2, 6, 16, 2))


def test_steps_that_only_decode_have_no_launch_for_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Recorder()
    for name in ("attend_splits_kernel", "merge_splits_kernel"):
        monkeypatch.setattr(triton_paged_attention, name, Recorder())
    monkeypatch.setattr(triton_paged_attention, "attend_prompts_kernel", kept)
    monkeypatch.setattr(triton_rotate_store, "rotate_store_kernel", Recorder())

    make_case([(1, 600), (1, 20)]).run(triton_paged_attention.paged_attention_triton)
    assert not kept.launches
    make_case([(1, 600), (2, 20)]).run(triton_paged_attention.paged_attention_triton)
    assert len(kept.launches) == 1
