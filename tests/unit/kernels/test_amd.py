"""Every kernel compiles for an AMD card, but for tables of NF4 and FP4: NVIDIA's instructions read those."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from kernels.lora.expand_norm import expand_norm
from kernels.lora.segments import SlotScale
from kernels.lora.shrink import planes_shape
from kernels.registry import resolve
from tests.unit.kernels import attention_cases
from tests.unit.kernels.compiled import Launch, compile_for_amd, launch_on
from tests.unit.kernels.draw_cases import Case as Choice
from tests.unit.kernels.draw_cases import arguments
from tests.unit.kernels.embedding_cases import make_embedding_case
from tests.unit.kernels.experts.device_rows import device_rows
from tests.unit.kernels.random_adapters import make_case
from tests.unit.kernels.random_codes import random_weight

BF16 = torch.bfloat16
KERNELS = {
    "add_rms_norm_kernel",
    "attend_prompts_kernel",
    "attend_splits_kernel",
    "choose_experts_kernel",
    "clamped_gate_kernel",
    "combine_experts_kernel",
    "draw_kernel",
    "embedding_add_kernel",
    "expand_kernel",
    "expand_norm_kernel",
    "expert_segments_kernel",
    "gate_kernel",
    "grouped_linear_kernel",
    "merge_splits_kernel",
    "narrow_kernel",
    "quantized_linear_kernel",
    "rotate_store_kernel",
    "shrink_kernel",
    "sort_by_expert_kernel",
    "sum_splits_kernel",
}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[JITFunction, Launch]]:
    """The latest launch of each kernel by its name; none is run."""
    found: dict[str, tuple[JITFunction, Launch]] = {}

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        del grid, warmup
        found[kernel.__name__] = kernel, Launch(args, options)

    launch_on(80, monkeypatch)
    monkeypatch.setattr(JITFunction, "run", record)
    return found


def op(name: str, dtype: torch.dtype = BF16) -> Any:
    """Return an op of Triton's."""
    return resolve(name, "cpu", dtype, "triton")


def zeros(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """Return what no kernel will read."""
    return torch.zeros(shape, dtype=dtype)


def launch_rows() -> None:
    """Launch norm, gate and choice."""
    op("add_rms_norm")(zeros(2, 4096), zeros(2, 4096), torch.ones(4096), 1e-5)
    op("swiglu")(zeros(2, 2 * 14336))
    op("clamped_swiglu")(zeros(2, 2 * 2880), 1.702, 7.0)
    op("draw", torch.float32)(
        *arguments(zeros(2, 128256, dtype=torch.float32), Choice(top_p=0.9), [0.1, 0.7])
    )


def launch_quantized() -> None:
    """Launch a product with integers of 4 bits, its columns split."""
    weight = random_weight(64, 2048, bits=4, block=128)
    op("quantized_linear")(zeros(2, 64), 0, zeros(2, 2048), weight, None)


def launch_adapters() -> None:
    """Launch LoRA of a linear module, within a norm, and of an embedding."""
    case = make_case(
        ranks=[[16, 8]], slots=[0, 1], in_features=4096, slice_widths=[4096], dtype=BF16, has_extras=True
    )
    op("lora_add")(case.out, case.x, case.segments, case.module)
    planes = torch.zeros(planes_shape(2, case.module))
    expand_norm(case.out.clone(), case.out, planes, case.module, case.lora_pass, torch.ones(4096), 1e-5)
    embedded = make_embedding_case(
        ranks=[16], runs=[(2, (SlotScale(0),))], hidden_size=64, dtype=BF16, block_rows=16
    )
    op("embedding_lora_add")(embedded.embedded, embedded.token_ids, embedded.segments, embedded.module)


def launch_attention() -> None:
    """Launch rows that decode, and a prompt."""
    for chunks in ([(1, 2000)], [(40, 0)]):
        case = attention_cases.make_case(chunks, num_heads=32, num_kv_heads=8, head_dim=128, dtype=BF16)
        case.run(op("paged_attention"))


def launch_experts() -> None:
    """Launch all of a layer with experts."""
    op("choose_experts")(zeros(4, 8), 2, True)
    op("sort_by_expert")(torch.zeros(4, 2, dtype=torch.int64), 8)
    rows = device_rows(4, 2, 8)
    case = make_case(ranks=[[8]], slots=[0] * 4, in_features=64, slice_widths=[64], dtype=BF16)
    op("expert_segments")(rows, case.segments)
    op("grouped_linear")(zeros(4, 512), zeros(8, 256, 512), rows, True)
    op("combine_experts")(zeros(8, 512), rows.places, torch.zeros(4, 2))


def test_every_kernel_compiles_for_an_amd_card(launched: dict[str, tuple[JITFunction, Launch]]) -> None:
    launch_rows()
    launch_quantized()
    launch_adapters()
    launch_attention()
    launch_experts()

    assert launched.keys() == KERNELS
    for kernel, launch in launched.values():
        assert compile_for_amd(kernel, launch, arch="gfx942").startswith(b"\x7fELF"), kernel.__name__
