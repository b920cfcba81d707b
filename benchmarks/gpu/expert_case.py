"""A layer with experts on the device, adapters on every expert, and the same in plain torch in any dtype."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.device import Device, random
from kernels.experts.grouped_linear import StackedLinear
from kernels.linear.linear import Linear
from kernels.lora.segments import BASE_SLOT, Segments, SlotScale
from kernels.lora.tables import LoRASlice, LoRATable, PackedLoRA, PackedShape, Slice, WeightsKey
from kernels.registry import build
from workers.engine.model.config import Experts
from workers.engine.model.layers.adapted_linear import AdaptedLinear
from workers.engine.model.layers.expert_linear import expert_linear
from workers.engine.model.layers.side_stream import side_stream_of
from workers.engine.model.layers.sparse_mlp import SparseMLP


class ExpertShapes(NamedTuple):
    """A model's layers with experts."""

    name: str
    hidden_size: int
    width: int  # of one expert's hidden layer
    num_experts: int
    num_chosen: int

    @property
    def modules(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Return input width and slices of an expert's two packed linear layers."""
        return {
            "gate_up": (self.hidden_size, (self.width, self.width)),
            "down": (self.width, (self.hidden_size,)),
        }


MIXTRAL_8X7B = ExpertShapes("Mixtral-8x7B", 4096, 14336, 8, 2)
QWEN3_30B = ExpertShapes("Qwen3-30B-A3B", 2048, 768, 128, 8)
SMALL = ExpertShapes("small", 256, 192, 8, 2)
TINY = ExpertShapes("tiny", 32, 16, 3, 2)


class ExpertCase:
    """Weights and adapters; `run` is what the engine launches for a layer's MLP."""

    def __init__(
        self, device: Device, shapes: ExpertShapes, dtype: torch.dtype, *, ranks: Sequence[int] = ()
    ) -> None:
        """`ranks` are the adapters', in slots of their own."""
        generator = device.generator(shapes.num_experts)
        self.device, self.shapes, self.dtype = device, shapes, dtype
        self._kernels = build(device.name, dtype, "triton")
        hidden, experts = shapes.hidden_size, shapes.num_experts
        self._router = Linear(
            random(device, generator, dtype, experts, hidden) / hidden**0.5, kernel=self._kernels.linear
        )
        self.weights = {
            name: weights_of(device, generator, dtype, experts, sum(slices), width)
            for name, (width, slices) in shapes.modules.items()
        }
        packed: dict[Hashable, PackedShape] = {
            name: PackedShape(width, slices, dtype, experts)
            for name, (width, slices) in shapes.modules.items()
        }
        table = LoRATable(packed, len(ranks), max_rank=max([16, *ranks]), device=device.name)
        self._adapters = [self._adapter(generator, rank) for rank in ranks]
        for slot, adapter in enumerate(self._adapters):
            table.point(slot, table.describe(adapter))
        multiply, add = self._kernels.grouped_linear, self._kernels.lora_add
        assert multiply is not None, "a card has it"
        stacks = {
            name: StackedLinear(weight, kernel=self._kernels.linear, multiply=multiply)
            for name, weight in self.weights.items()
        }
        side = side_stream_of(torch.device(device.name))
        linears = {name: expert_linear(one, table.module(name), add, side) for name, one in stacks.items()}
        given = Experts(
            num_experts=experts,
            num_chosen=shapes.num_chosen,
            width=shapes.width,
            normalizes=True,
            in_layer=(True,),
        )
        router = AdaptedLinear(self._router, None, add)
        self._layer = SparseMLP(given, router, linears["gate_up"], linears["down"], self._kernels)

    @property
    def num_adapters(self) -> int:
        """How many slots have an adapter."""
        return len(self._adapters)

    def run(self, x: Tensor, segments: Segments | None = None) -> Tensor:
        """Launch the layer."""
        return self._layer(x, segments)

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the router's shares and choices for a batch, as the layer makes them."""
        return self._kernels.choose_experts(self._router(x), self.shapes.num_chosen, True)

    def by_torch(self, x: Tensor, slots: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Compute the layer for the layer's own choices in plain torch, expert by expert."""
        shares, chosen = self.chosen(x)
        wide = torch.promote_types(dtype, torch.float32)
        out = torch.zeros(x.shape, dtype=wide, device=x.device)
        for choice in range(self.shapes.num_chosen):
            for expert in range(self.shapes.num_experts):
                rows = (chosen[:, choice] == expert).nonzero().flatten()
                mine = [slots[row] for row in rows.tolist()]
                gate, up = self._multiply("gate_up", expert, x[rows].to(dtype), mine).chunk(2, dim=-1)
                hidden = (torch.nn.functional.silu(gate.to(wide)) * up.to(wide)).to(dtype)
                answer = self._multiply("down", expert, hidden, mine)
                out[rows] += shares[rows, choice, None].to(wide) * answer.to(wide)
        return out.to(dtype)

    def _multiply(self, module: str, expert: int, x: Tensor, slots: list[int]) -> Tensor:
        out = x @ self.weights[module][expert].to(x.dtype).T
        for slot in set(slots) - {BASE_SLOT}:
            rows = [row for row, held in enumerate(slots) if held == slot]
            packed = self._adapters[slot][WeightsKey(module, expert)]
            for part in packed.slices:
                a = packed.a[part.rank.start : part.rank.end].to(x.dtype)
                columns = slice(*part.out)
                out[rows, columns] += (x[rows] @ a.T) @ part.b_t.to(x.dtype)
        return out

    def _adapter(self, generator: torch.Generator, rank: int) -> dict[WeightsKey, PackedLoRA]:
        adapter, experts = {}, self.shapes.num_experts
        for name, (width, slices) in self.shapes.modules.items():
            a = random(self.device, generator, self.dtype, experts, len(slices) * rank, width) / width**0.5
            parts = [random(self.device, generator, self.dtype, experts, rank, one) / rank for one in slices]
            for expert in range(experts):
                members = tuple(
                    LoRASlice(
                        Slice(sum(slices[:at]), sum(slices[: at + 1])),
                        Slice(at * rank, (at + 1) * rank),
                        parts[at][expert],
                    )
                    for at in range(len(slices))
                )
                adapter[WeightsKey(name, expert)] = PackedLoRA(a[expert], members)
        return adapter


def weights_of(device: Device, generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Return normal values made in place: in float32 first they would take three times the memory."""
    made = torch.empty(shape, dtype=dtype, device=device.name)
    return made.normal_(std=shape[-1] ** -0.5, generator=generator)


def segments_of(device: Device, slots: Sequence[int], num_tiles: int = 0) -> Segments:
    """Return segments of one pass on the device, whatever the slots are: a grid that is captured stays."""
    runs = [(1, () if slot == BASE_SLOT else (SlotScale(slot),)) for slot in slots]
    return Segments.from_runs(runs, block_rows=16, num_tiles=num_tiles).to(device.name)
