"""What each op is measured on: the shapes of a decode step of the reference workload."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.workload import Geometry
from kernels.linear.linear import Linear
from kernels.linear.logits import Head
from kernels.linear.quantized_linear import QuantizedLinear
from kernels.linear.quantized_weight import IDENTITY_TABLE, QuantizedWeight, pack_codes
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRASlice, LoRATable, PackedLoRA, PackedShape, Slice, WeightsKey
from kernels.registry import Kernels

_BLOCK_SIZE = 16
_QUANTIZED_BLOCK = 64
_NUM_EXPERTS, _NUM_CHOSEN = 8, 2


@dataclass(frozen=True, slots=True)
class Shapes:
    """A decode step."""

    geometry: Geometry = field(default_factory=Geometry)
    num_rows: int = 32
    num_adapters: int = 8
    rank: int = 16
    context: int = 512

    @property
    def qkv_widths(self) -> tuple[int, int, int]:
        """Output widths of the attention's packed module."""
        kv = self.geometry.num_kv_heads * self.geometry.head_dim
        return self.geometry.num_heads * self.geometry.head_dim, kv, kv


@dataclass(frozen=True, slots=True)
class Call:
    """One prepared call, on data of its own."""

    run: Callable[[], object]
    floor_bytes: int  # that it must read and write, each once
    what: str


Make = Callable[[Kernels, Shapes, torch.Generator], Call]


def _add_rms_norm(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    width, rows = shapes.geometry.hidden_size, shapes.num_rows
    residual, delta = (_random(generator, kernels, rows, width) for _ in range(2))
    weight = torch.ones(width)
    moved = 2 * residual.nbytes + delta.nbytes + residual.nbytes + weight.nbytes
    return Call(lambda: kernels.add_rms_norm(residual, delta, weight, 1e-5), moved, f"[{rows}, {width}]")


def _gate(kernels: Kernels, shapes: Shapes, generator: torch.Generator, op: str) -> Call:
    width, rows = shapes.geometry.intermediate_size, shapes.num_rows
    gate_up = _random(generator, kernels, rows, 2 * width)
    gate = getattr(kernels, op)
    return Call(lambda: gate(gate_up), gate_up.nbytes * 3 // 2, f"[{rows}, 2 x {width}]")


def _clamped_swiglu(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    width, rows = shapes.geometry.intermediate_size, shapes.num_rows
    gate_up = _random(generator, kernels, rows, 2 * width)
    gate = kernels.clamped_swiglu
    return Call(lambda: gate(gate_up, 1.702, 7.0), gate_up.nbytes * 3 // 2, f"[{rows}, 2 x {width}]")


def _linear(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    hidden, width, rows = shapes.geometry.hidden_size, 2 * shapes.geometry.intermediate_size, shapes.num_rows
    layer = Linear(_random(generator, kernels, width, hidden), kernel=kernels.linear)
    x = _random(generator, kernels, rows, hidden)
    moved = layer.nbytes + x.nbytes + rows * width * x.itemsize
    return Call(lambda: layer(x), moved, f"[{rows}, {hidden}] x [{width}, {hidden}], {layer.kernel.name}")


def _logits(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    hidden, vocab, rows = shapes.geometry.hidden_size, shapes.geometry.vocab_size, shapes.num_rows
    head = Head(_random(generator, kernels, vocab, hidden), kernels.logits)
    x = _random(generator, kernels, rows, hidden)
    moved = head.weight.nbytes + x.nbytes + 4 * rows * vocab
    return Call(lambda: head(x), moved, f"[{rows}, {hidden}] x [{vocab}, {hidden}]")


def _quantized_linear(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    hidden, width, rows = shapes.geometry.hidden_size, 2 * shapes.geometry.intermediate_size, shapes.num_rows
    codes = torch.randint(16, (width, hidden), generator=generator, dtype=torch.uint8)
    scales = torch.rand(-(-width * hidden // _QUANTIZED_BLOCK), generator=generator)
    weight = QuantizedWeight(hidden, pack_codes(codes), scales, None, IDENTITY_TABLE, _QUANTIZED_BLOCK)
    assert kernels.quantized_linear is not None, "a CPU has it at every level"
    layer = QuantizedLinear([weight], multiply=kernels.quantized_linear)
    x = _random(generator, kernels, rows, hidden)
    moved = layer.nbytes + x.nbytes + rows * width * x.itemsize
    return Call(lambda: layer(x), moved, f"[{rows}, {hidden}] x [{width}, {hidden}], 4 bit")


def _paged_attention(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    geometry, rows, context = shapes.geometry, shapes.num_rows, shapes.context
    head_dim, num_blocks = geometry.head_dim, -(-context // _BLOCK_SIZE)
    qkv = _random(generator, kernels, rows, (geometry.num_heads + 2 * geometry.num_kv_heads) * head_dim)
    cache = (rows * num_blocks, geometry.num_kv_heads, _BLOCK_SIZE, head_dim)
    keys, values = (_random(generator, kernels, *cache) for _ in range(2))
    cos, sin = (_random(generator, kernels, rows, head_dim) for _ in range(2))
    sequence_rows = torch.tensor([(row, 1, context - 1) for row in range(rows)], dtype=torch.int32)
    tables = torch.randperm(rows * num_blocks, generator=generator).int().view(rows, num_blocks)
    attend = kernels.paged_attention
    assert attend is not None, "the engine gathers blocks here; give a compiled level"
    arguments = (qkv, keys, values, cos, sin, sequence_rows, tables, head_dim**-0.5)
    moved = keys.nbytes + values.nbytes + 2 * qkv.nbytes
    return Call(lambda: attend(*arguments), moved, f"{rows} sequences of {context} tokens")


def _lora_add(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    hidden, widths, rows = shapes.geometry.hidden_size, shapes.qkv_widths, shapes.num_rows
    table = LoRATable({"qkv": PackedShape(hidden, widths, kernels.dtype)}, shapes.num_adapters)
    num_bytes = 0
    for slot in range(shapes.num_adapters):
        packed = _adapter(kernels, generator, hidden, widths, shapes.rank)
        num_bytes += packed.num_bytes
        table.point(slot, table.describe({WeightsKey("qkv"): packed}))
    slots = sorted(row % shapes.num_adapters for row in range(rows))
    segments, module = Segments.from_slots(slots), table.module("qkv")
    x, out = _random(generator, kernels, rows, hidden), _random(generator, kernels, rows, sum(widths))
    what = f"qkv, {rows} rows, {shapes.num_adapters} adapters of rank {shapes.rank}"
    moved = num_bytes + x.nbytes + 2 * out.nbytes
    return Call(lambda: kernels.lora_add(out, x, segments, module), moved, what)


def _embedding_lora_add(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    geometry, rows, rank = shapes.geometry, shapes.num_rows, shapes.rank
    vocab, hidden = geometry.vocab_size, geometry.hidden_size
    shape = PackedShape(vocab, (hidden,), kernels.dtype, is_lookup=True)
    table = LoRATable({"embedding": shape}, shapes.num_adapters)
    a_t = _random(generator, kernels, vocab, rank)
    for slot in range(shapes.num_adapters):
        part = LoRASlice(Slice(0, hidden), Slice(0, rank), _random(generator, kernels, rank, hidden))
        table.point(slot, table.describe({WeightsKey("embedding"): PackedLoRA(a_t, (part,))}))
    segments = Segments.from_slots(sorted(row % shapes.num_adapters for row in range(rows)))
    embedded, module = _random(generator, kernels, rows, hidden), table.module("embedding")
    tokens = torch.randint(vocab, (rows,), generator=generator)
    moved = 2 * embedded.nbytes + (rows + shapes.num_adapters * hidden) * rank * embedded.itemsize
    what = f"{rows} rows, {shapes.num_adapters} adapters of rank {rank}"
    return Call(lambda: kernels.embedding_lora_add(embedded, tokens, segments, module), moved, what)


def _choose_experts(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    logits = _random(generator, kernels, shapes.num_rows, _NUM_EXPERTS)
    moved = logits.nbytes + 12 * shapes.num_rows * _NUM_CHOSEN
    what = f"{_NUM_CHOSEN} of {_NUM_EXPERTS}, {shapes.num_rows} rows"
    return Call(lambda: kernels.choose_experts(logits, _NUM_CHOSEN, True), moved, what)


def _sort_by_expert(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    chosen = _chosen(shapes, generator)
    what = f"{chosen.numel()} choices of {_NUM_EXPERTS}"
    return Call(lambda: kernels.sort_by_expert(chosen, _NUM_EXPERTS, None), 3 * chosen.nbytes, what)


def _expert_segments(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    rows = kernels.sort_by_expert(_chosen(shapes, generator), _NUM_EXPERTS, None)
    slots = sorted(row % shapes.num_adapters for row in range(shapes.num_rows))
    segments = Segments.from_slots(slots, block_rows=16 if kernels.level == "triton" else None)
    moved = rows.sources.nbytes + 4 * len(rows.sources)
    what = f"{len(rows.sources)} sorted rows, {shapes.num_adapters} adapters"
    return Call(lambda: kernels.expert_segments(rows, segments), moved, what)


def _grouped_linear(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    multiply, rows = (
        kernels.grouped_linear,
        kernels.sort_by_expert(_chosen(shapes, generator), _NUM_EXPERTS, None),
    )
    assert multiply is not None, "a CPU multiplies one expert after the other; give --level triton"
    hidden, width = shapes.geometry.hidden_size, 2 * shapes.geometry.intermediate_size
    weight = _random(generator, kernels, _NUM_EXPERTS, width, hidden)
    x = _random(generator, kernels, shapes.num_rows, hidden)
    moved = weight.nbytes + x.nbytes + len(rows.sources) * width * x.itemsize
    what = f"{len(rows.sources)} rows, {_NUM_EXPERTS} x [{width}, {hidden}]"
    return Call(lambda: multiply(x, weight, rows, True), moved, what)


def _combine_experts(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    rows = kernels.sort_by_expert(_chosen(shapes, generator), _NUM_EXPERTS, None)
    answers = _random(generator, kernels, len(rows.sources), shapes.geometry.hidden_size)
    shares = torch.rand(shapes.num_rows, _NUM_CHOSEN, generator=generator)
    moved = answers.nbytes + answers.nbytes // _NUM_CHOSEN
    what = f"{_NUM_CHOSEN} answers for each of {shapes.num_rows} rows"
    return Call(lambda: kernels.combine_experts(answers, rows.places, shares), moved, what)


def _chosen(shapes: Shapes, generator: torch.Generator) -> Tensor:
    logits = torch.rand(shapes.num_rows, _NUM_EXPERTS, generator=generator)
    return logits.topk(_NUM_CHOSEN, dim=-1).indices


def _adapter(
    kernels: Kernels, generator: torch.Generator, hidden: int, widths: tuple[int, ...], rank: int
) -> PackedLoRA:
    slices, column = [], 0
    for index, width in enumerate(widths):
        ranks = Slice(index * rank, (index + 1) * rank)
        b_t = _random(generator, kernels, rank, width)
        slices.append(LoRASlice(Slice(column, column + width), ranks, b_t))
        column += width
    return PackedLoRA(_random(generator, kernels, rank * len(widths), hidden), tuple(slices))


def _draw(kernels: Kernels, shapes: Shapes, generator: torch.Generator) -> Call:
    vocab, rows = shapes.geometry.vocab_size, shapes.num_rows
    logits = 6 * torch.randn(rows, vocab, generator=generator)
    temperatures, top_ks = torch.ones(rows), torch.full((rows,), 50)
    top_ps, uniforms = torch.full((2, rows), 0.9, dtype=torch.float64)
    arguments = (logits, temperatures, top_ks, top_ps, None, uniforms, logits.amax(dim=-1))
    what = f"[{rows}, {vocab}], top-k 50, top-p 0.9"
    return Call(lambda: kernels.draw(*arguments), logits.nbytes + 8 * rows, what)


def _random(generator: torch.Generator, kernels: Kernels, *shape: int) -> Tensor:
    values: Tensor = torch.randn(*shape, generator=generator) / shape[-1] ** 0.5
    return values.to(kernels.dtype)


CASES: Mapping[str, Make] = {
    "add_rms_norm": _add_rms_norm,
    "swiglu": lambda kernels, shapes, generator: _gate(kernels, shapes, generator, "swiglu"),
    "geglu": lambda kernels, shapes, generator: _gate(kernels, shapes, generator, "geglu"),
    "clamped_swiglu": _clamped_swiglu,
    "linear": _linear,
    "logits": _logits,
    "quantized_linear": _quantized_linear,
    "choose_experts": _choose_experts,
    "sort_by_expert": _sort_by_expert,
    "expert_segments": _expert_segments,
    "grouped_linear": _grouped_linear,
    "combine_experts": _combine_experts,
    "paged_attention": _paged_attention,
    "embedding_lora_add": _embedding_lora_add,
    "lora_add": _lora_add,
    "draw": _draw,
}
