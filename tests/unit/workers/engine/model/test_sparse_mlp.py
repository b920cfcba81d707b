"""On a device a layer with experts asks for nothing: what it launches depends on shapes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.activations import triton_gates
from kernels.experts import (
    triton_choose_experts,
    triton_combine_experts,
    triton_expert_segments,
    triton_grouped_linear,
    triton_sort_by_expert,
)
from kernels.experts.grouped_linear import StackedLinear
from kernels.linear.linear import Linear
from kernels.lora import expand, shrink
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule, LoRATable, PackedShape
from kernels.registry import Kernels, build
from tests.unit.kernels.compiled import Recorder
from workers.engine.model.config import Experts
from workers.engine.model.layers.adapted_linear import AdaptedLinear
from workers.engine.model.layers.expert_linear import expert_linear
from workers.engine.model.layers.sparse_mlp import SparseMLP

HIDDEN, WIDTH, NUM_EXPERTS, NUM_ROWS = 32, 16, 4, 5
LAUNCHED: dict[str, Any] = {
    "choose_experts_kernel": triton_choose_experts,
    "sort_by_expert_kernel": triton_sort_by_expert,
    "expert_segments_kernel": triton_expert_segments,
    "grouped_linear_kernel": triton_grouped_linear,
    "combine_experts_kernel": triton_combine_experts,
    "gate_kernel": triton_gates,
    "shrink_kernel": shrink,
    "expand_kernel": expand,
}


def layer(kernels: Kernels, device: str) -> SparseMLP:
    def empty(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device)

    shapes: dict[Any, PackedShape] = {
        "router": PackedShape(HIDDEN, (NUM_EXPERTS,), torch.float32),
        "gate_up": PackedShape(HIDDEN, (WIDTH, WIDTH), torch.float32, NUM_EXPERTS),
        "down": PackedShape(WIDTH, (HIDDEN,), torch.float32, NUM_EXPERTS),
    }
    table = LoRATable(shapes, 3, max_rank=16)
    modules: dict[str, LoRAModule] = {name: table.module(name) for name in shapes}
    assert kernels.grouped_linear is not None
    stacks = {
        name: StackedLinear(
            empty(NUM_EXPERTS, modules[name].out_features, modules[name].in_features),
            kernel=kernels.linear,
            multiply=kernels.grouped_linear,
        )
        for name in ("gate_up", "down")
    }
    experts = {
        name: expert_linear(one, modules[name], kernels.lora_add, None) for name, one in stacks.items()
    }
    chosen_from = Experts(
        num_experts=NUM_EXPERTS, num_chosen=2, width=WIDTH, normalizes=True, in_layer=(True,)
    )
    router = Linear(empty(NUM_EXPERTS, HIDDEN), kernel=kernels.linear)
    adapted = AdaptedLinear(router, modules["router"], kernels.lora_add)
    return SparseMLP(chosen_from, adapted, experts["gate_up"], experts["down"], kernels)


def segments_of(slots: list[int]) -> Segments:
    return Segments.from_slots(slots, block_rows=16, num_tiles=4)


@pytest.mark.parametrize("has_adapters", [False, True])
def test_tensors_without_contents_go_through(has_adapters: bool) -> None:
    x = torch.empty(NUM_ROWS, HIDDEN, device="meta")
    segments = segments_of([0] * NUM_ROWS).to("meta") if has_adapters else None

    out = layer(build("meta", torch.float32), "meta")(x, segments)

    assert (out.device.type, out.shape) == ("meta", x.shape)


def test_what_is_launched_depends_on_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    recorders = {name: Recorder() for name in LAUNCHED}
    for name, module in LAUNCHED.items():
        monkeypatch.setattr(module, name, recorders[name])
    # The addresses that A x is gathered from are made by a kernel, which is recorded only.
    monkeypatch.setattr(torch, "empty", torch.zeros)
    sparse = layer(build("cpu", torch.float32, "triton"), "cpu")

    seen = []
    for slots in ([0, 0, 0, -1, -1], [0, 1, 2, 2, 2]):
        sparse(torch.zeros(NUM_ROWS, HIDDEN), segments_of(slots))
        seen.append({name: launches_of(recorder) for name, recorder in recorders.items()})

    assert seen[0] == seen[1]
    assert all(seen[0].values())
    assert len(seen[0]["expert_segments_kernel"]) == 1


def launches_of(recorder: Recorder) -> list[Any]:
    """Return grids and arguments since the last time, tensors by shape and dtype."""
    found = [
        (
            grid,
            launch.options,
            [(one.shape, one.dtype) if isinstance(one, Tensor) else one for one in launch.args],
        )
        for grid, launch in zip(recorder.grids, recorder.launches, strict=True)
    ]
    recorder.grids.clear()
    recorder.launches.clear()
    return found
