"""What is timed: launches on data that rotates beyond the cache, and the bytes and operations they need."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch.nn import functional as F

from benchmarks.gpu.attention_case import Chunk, Heads, make_attention
from benchmarks.gpu.device import Device, Launch, random
from benchmarks.gpu.lora_case import Rows
from benchmarks.gpu.quantized_case import CODINGS, TIMED, make_weight
from benchmarks.gpu.shapes import Shapes
from kernels.lora.tables import LoRASlice, LoRATable, PackedLoRA, PackedShape, Slice, WeightsKey
from kernels.registry import resolve

_DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Timing:
    """A kernel at one shape."""

    name: str
    make: Callable[[int], list[Launch]]  # given how many sets of data, returns a launch on each
    num_bytes: int  # read and written, each once
    num_flops: int = 0
    kind: Hashable = None  # cases of one kind compile to the same
    is_compiled: bool = True


def timings(device: Device, shapes: Shapes) -> Iterator[Timing]:
    """Yield everything, what matters most first."""
    dtype = torch.float32 if device.is_rehearsal else _DTYPE
    for batch in shapes.batches:
        yield from _linears(device, shapes, dtype, batch)
        yield from _row_kernels(device, shapes, dtype, batch)
        yield _decode(device, shapes, dtype, batch, shapes.contexts[0], f"decode b{batch} first context")
    for batch in shapes.batches:
        for count in shapes.adapter_counts:
            for rank in shapes.ranks if count <= batch else ():
                for module in shapes.modules:
                    yield _lora(device, shapes, dtype, module, batch, count, rank)
    yield from _quantized_linears(device, shapes, dtype)
    for batch in shapes.batches:
        for context in shapes.contexts[1:]:
            yield _decode(device, shapes, dtype, batch, context, f"decode b{batch} context {context}")
    yield from _prompt(device, shapes, dtype)
    yield from _row_kernels(device, shapes, dtype, shapes.prompt)
    yield from _linears(device, shapes, dtype, shapes.prompt, heads=False)


def _linears(
    device: Device, shapes: Shapes, dtype: torch.dtype, batch: int, *, heads: bool = True
) -> Iterator[Timing]:
    for module, (in_features, slices) in shapes.modules.items():
        yield _product(device, dtype, f"linear {module} b{batch}", batch, in_features, sum(slices))
    if heads:
        yield _product(
            device, dtype, f"head b{batch}", batch, shapes.hidden_size, shapes.vocab_size, head=True
        )


def _product(
    device: Device,
    dtype: torch.dtype,
    name: str,
    batch: int,
    width: int,
    out_width: int,
    *,
    head: bool = False,
) -> Timing:
    def launch(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if head and not device.is_rehearsal:  # float32 out of bfloat16 is a product that only cuBLAS has
            return torch.mm(x, weight.T, out_dtype=torch.float32)
        return F.linear(x, weight)

    def make(num_copies: int) -> list[Launch]:
        generator = device.generator(1)
        weights = [random(device, generator, dtype, out_width, width) for _ in range(num_copies)]
        x = random(device, generator, dtype, batch, width)
        return [partial(launch, x, weight) for weight in weights]

    size = dtype.itemsize
    num_bytes = size * (width * out_width + batch * width) + (4 if head else size) * batch * out_width
    return Timing(name, make, num_bytes, 2 * batch * width * out_width, is_compiled=False)


def _quantized_linears(device: Device, shapes: Shapes, dtype: torch.dtype) -> Iterator[Timing]:
    for batch in (*shapes.batches, shapes.prompt):
        for module in ("o",) if device.is_rehearsal else shapes.modules:
            for name in TIMED:
                yield _quantized(device, shapes, dtype, module, batch, name)


def _quantized(
    device: Device, shapes: Shapes, dtype: torch.dtype, module: str, batch: int, name: str
) -> Timing:
    """A product whose floor is its codes; of a prompt, its multiplications."""
    op, coding = resolve("quantized_linear", device.name, dtype, "triton"), CODINGS[name]
    in_features, slices = shapes.modules[module]
    out_features, size = sum(slices), dtype.itemsize

    def make(num_copies: int) -> list[Launch]:
        generator = device.generator(6)
        x = random(device, generator, dtype, batch, in_features)
        out = x.new_empty(batch, out_features)
        weights = [
            make_weight(device, generator, coding, out_features, in_features) for _ in range(num_copies)
        ]
        return [partial(op, out, 0, x, weight, None) for weight in weights]

    num_bytes = int(coding.bytes_per_weight * in_features * out_features)
    num_bytes += size * batch * (in_features + out_features)
    flops = 2 * batch * in_features * out_features
    kind = ("quantized", name, module, min(batch, 257) // 16)
    return Timing(f"{name} {module} b{batch}", make, num_bytes, flops, kind)


def _row_kernels(device: Device, shapes: Shapes, dtype: torch.dtype, batch: int) -> Iterator[Timing]:
    hidden, ffn, size = shapes.hidden_size, shapes.intermediate_size, dtype.itemsize
    norm, gate = (resolve(op, device.name, dtype, "triton") for op in ("add_rms_norm", "swiglu"))

    def norms(num_copies: int) -> list[Launch]:
        generator, weight = device.generator(2), torch.ones(hidden, device=device.name)
        pairs = [
            [random(device, generator, dtype, batch, hidden) for _ in range(2)] for _ in range(num_copies)
        ]
        return [partial(norm, residual, delta, weight, 1e-5) for residual, delta in pairs]

    def gates(num_copies: int) -> list[Launch]:
        generator = device.generator(3)
        return [partial(gate, random(device, generator, dtype, batch, 2 * ffn)) for _ in range(num_copies)]

    yield Timing(f"norm b{batch}", norms, size * 4 * batch * hidden + 4 * hidden, kind="norm")
    yield Timing(f"gate b{batch}", gates, size * 3 * batch * ffn, kind="gate")


def _decode(
    device: Device, shapes: Shapes, dtype: torch.dtype, batch: int, context: int, name: str
) -> Timing:
    """One row a sequence, block tables as wide as the longest context that is served."""
    chunks: list[Chunk] = [(1, context - 1)] * batch
    return _attention(device, shapes, dtype, chunks, name, ("decode", batch))


def _prompt(device: Device, shapes: Shapes, dtype: torch.dtype) -> Iterator[Timing]:
    rows, heads = shapes.prompt, shapes.num_heads
    yield _attention(device, shapes, dtype, [(rows, 0)], f"prompt of {rows}", "prompt")

    def make(num_copies: int) -> list[Launch]:
        generator = device.generator(4)
        q = random(device, generator, dtype, 1, heads, rows, shapes.head_dim)
        k, v = (random(device, generator, dtype, 1, heads, rows, shapes.head_dim) for _ in range(2))
        return [partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)] * num_copies

    num_bytes = dtype.itemsize * 4 * heads * rows * shapes.head_dim
    flops = 2 * rows * rows * heads * shapes.head_dim
    yield Timing(f"prompt of {rows} by torch", make, num_bytes, flops, is_compiled=False)


def _attention(
    device: Device, shapes: Shapes, dtype: torch.dtype, chunks: list[Chunk], name: str, kind: Hashable
) -> Timing:
    heads = Heads(shapes.num_heads, shapes.num_kv_heads, shapes.head_dim)
    attend = resolve("paged_attention", device.name, dtype, "triton")
    num_rows, num_tokens = (sum(part) for part in zip(*chunks, strict=True))
    num_tokens += num_rows

    def make(num_copies: int) -> list[Launch]:
        cases = [
            make_attention(
                device,
                chunks,
                heads,
                dtype,
                seed=copy,
                max_blocks=shapes.max_context // heads.block_size,
                is_poisoned=False,
            )
            for copy in range(num_copies)
        ]
        return [partial(case.run, attend) for case in cases]

    token_bytes = 2 * shapes.num_kv_heads * shapes.head_dim * dtype.itemsize
    # Queries, keys and values are read, queries written and read, the result written.
    row_bytes = (4 * shapes.num_heads + 2 * shapes.num_kv_heads) * shapes.head_dim * dtype.itemsize
    pairs = sum(rows * (2 * seen + rows + 1) // 2 for rows, seen in chunks)
    flops = 4 * pairs * shapes.num_heads * shapes.head_dim
    return Timing(name, make, token_bytes * num_tokens + row_bytes * num_rows, flops, kind)


def _lora(
    device: Device, shapes: Shapes, dtype: torch.dtype, module: str, batch: int, count: int, rank: int
) -> Timing:
    """Adapters in slots of their own for every launch, so that none is read from the cache."""
    in_features, slices = shapes.modules[module]
    size = dtype.itemsize
    adapter_bytes = size * rank * (len(slices) * in_features + sum(slices))

    def make(num_copies: int) -> list[Launch]:
        generator, num_slots = device.generator(5), num_copies * count
        table = LoRATable(
            {module: PackedShape(in_features, slices, dtype)},
            num_slots,
            max_rank=max(shapes.ranks[-1], 16),
            device=device.name,
        )
        a = random(device, generator, dtype, num_slots, len(slices) * rank, in_features)
        b_t = [random(device, generator, dtype, num_slots, rank, width) for width in slices]
        bounds = list(pairwise(accumulate(slices, initial=0)))
        for slot in range(num_slots):
            parts = tuple(
                LoRASlice(Slice(*bound), Slice(index * rank, (index + 1) * rank), b_t[index][slot])
                for index, bound in enumerate(bounds)
            )
            table.point(slot, table.describe({WeightsKey(module): PackedLoRA(a[slot], parts)}))
        x = random(device, generator, dtype, batch, in_features)
        out = random(device, generator, dtype, batch, sum(slices))
        held = table.module(module)
        launches: list[Launch] = []
        for copy in range(num_copies):
            slots = sorted(copy * count + row % count for row in range(batch))
            rows = Rows(device, slots)
            launches.append(partial(rows.add, out, x, held))
        return launches

    num_bytes = count * adapter_bytes + size * batch * (in_features + 2 * sum(slices))
    flops = 2 * batch * rank * (len(slices) * in_features + sum(slices))
    name = f"lora {module} b{batch} {count}xr{rank}"
    return Timing(name, make, num_bytes, flops, kind=("lora", module))
