"""Layers with experts: the choice, sorting and tiles, products, and the layer as the engine launches it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.device import Device, random
from benchmarks.gpu.errors import Verdict, judge, same
from benchmarks.gpu.expert_case import SMALL, TINY, ExpertCase, segments_of
from benchmarks.gpu.lora_case import take
from benchmarks.gpu.right.check import Check, Found, dtypes_of, short
from kernels.experts.sort_by_expert import DeviceRows
from kernels.registry import by_name, resolve

_SIZES = ((1, 8, 128), (64, 8, 128), (300, 8, 128), (700, 8, 128), (2048, 8, 128), (33, 2, 8), (2048, 2, 8))
"""Rows, chosen, experts: tiles of every height."""
_TINY_SIZES = ((5, 2, 3),)
_WIDTHS = ((2048, 1536), (768, 2048), (129, 70))
_TINY_WIDTHS = ((33, 40),)
_RANKS = (16, 4, 33)


def checks(device: Device) -> Iterator[Check]:
    """Yield every check of these."""
    for dtype in dtypes_of(device):
        # Whatever the dtype, tiles are the same: bfloat16 has them all.
        all_widths = _WIDTHS if dtype is torch.bfloat16 else _WIDTHS[::2]
        for widths in _TINY_WIDTHS if device.is_rehearsal else all_widths:
            check = partial(_products, dtype=dtype, widths=widths)
            yield Check("grouped_linear", f"{short(dtype)} {widths[0]} to {widths[1]}", check)
        yield Check("layer with experts", short(dtype), partial(_layer, dtype=dtype))
    yield Check("sorting by expert", "and tiles of adapters", _sorting)
    yield Check("layer with experts in a graph", "replayed for other routings and adapters", _graph)


def _chosen(device: Device, num_rows: int, num_chosen: int, num_experts: int, seed: int = 1) -> Tensor:
    logits = torch.rand(num_rows, num_experts, generator=device.generator(seed), device=device.name)
    return logits.topk(num_chosen, dim=-1).indices.contiguous()


def _sorting(device: Device) -> Found:
    """Everything equals what plain torch makes of it, one expert for all rows included."""
    names = ("choose_experts", "sort_by_expert", "expert_segments")
    choose, sort, cut = (resolve(name, device.name, torch.float32, "triton") for name in names)
    for num_rows, num_chosen, num_experts in _TINY_SIZES if device.is_rehearsal else _SIZES:
        order = torch.stack([torch.randperm(num_experts) for _ in range(num_rows)])
        logits = (order / 8 - 4).to(device.name)
        case = f"{num_rows} rows, {num_chosen} of {num_experts}"
        choice = choose(logits, num_chosen, True)
        expected = by_name("choose_experts").reference(logits, num_chosen, True)
        yield f"{case}: choice", same(choice.chosen, expected.chosen)
        yield f"{case}: shares", judge(choice.shares, choice.shares, expected.shares.double(), 1)
        slots = sorted(row % 5 - 1 for row in range(num_rows))
        batch = segments_of(device, slots, num_tiles=num_rows // 16 + 8)
        for name, chosen in (("", choice.chosen), (", all one", choice.chosen[:, :1] * 0)):
            rows = sort(chosen.contiguous(), num_experts)
            plain = by_name("sort_by_expert").reference(chosen.cpu().contiguous(), num_experts)
            for field in fields(DeviceRows)[:-1]:
                found = same(getattr(rows, field.name).cpu(), getattr(plain, field.name))
                yield f"{case}{name}: {field.name}", found
            for one, other in zip(
                cut(rows, batch).passes,
                by_name("expert_segments").reference(plain, batch.to("cpu")).passes,
                strict=True,
            ):
                yield f"{case}{name}: tiles of adapters", same(one.table.cpu(), other.table)
                yield f"{case}{name}: scales", same(one.scales.cpu(), other.scales)


def _products(device: Device, dtype: torch.dtype, widths: tuple[int, int]) -> Found:
    in_features, out_features = widths
    generator = device.generator(in_features)
    sort, multiply = (
        resolve(name, device.name, dtype, "triton") for name in ("sort_by_expert", "grouped_linear")
    )
    for num_rows, num_chosen, num_experts in _TINY_SIZES if device.is_rehearsal else _SIZES:
        weight = random(device, generator, dtype, num_experts, out_features, in_features)
        x = random(device, generator, dtype, num_rows, in_features)
        rows = sort(_chosen(device, num_rows, num_chosen, num_experts), num_experts)
        plain, exact = (
            torch.zeros(rows.num_rows, out_features, dtype=one, device=device.name)
            for one in (dtype, torch.float64)
        )
        bounds = rows.starts.tolist()
        for expert in range(num_experts):
            mine = slice(bounds[expert], bounds[expert + 1])
            for out in (plain, exact):
                out[mine] = x[rows.sources[mine]].to(out.dtype) @ weight[expert].to(out.dtype).T
        device.poison()
        case = f"{num_rows} rows, {num_chosen} of {num_experts}, tiles of {rows.tile_rows}"
        whole = multiply(x, weight, rows, True)
        yield case, judge(whole, plain, exact, in_features)
        bias = random(device, generator, dtype, num_experts, out_features)
        numbers = torch.repeat_interleave(torch.arange(num_experts, device=device.name), rows.starts.diff())
        biased = multiply(x, weight, rows, True, bias)
        found = judge(biased, plain + bias[numbers], exact + bias[numbers].double(), in_features)
        yield f"{case}: biases", found
        yield f"{case}: sorted before", same(multiply(x[rows.sources], weight, rows, False), whole)
        spoiled = x.clone()
        spoiled[0] = float("nan")
        others = rows.sources != 0
        if others.any():
            yield f"{case}: beside NaN", same(multiply(spoiled, weight, rows, True)[others], whole[others])


def _layer(device: Device, dtype: torch.dtype) -> Found:
    """Adapters of several ranks, rows of the base before them."""
    case = _case(device, dtype)
    generator = device.generator(3)
    for num_rows in (2,) if device.is_rehearsal else (1, 8, 50, 300):
        x = random(device, generator, dtype, num_rows, case.shapes.hidden_size)
        slots = sorted(row % (case.num_adapters + 1) - 1 for row in range(num_rows))
        segments = segments_of(device, slots)
        plain, exact = (case.by_torch(x, slots, one) for one in (dtype, torch.float64))
        device.poison()
        yield f"{num_rows} rows", judge(case.run(x, segments), plain, exact, _terms(case))
        if not device.is_rehearsal:
            none = [-1] * num_rows
            plain, exact = (case.by_torch(x, none, one) for one in (dtype, torch.float64))
            yield f"{num_rows} rows of the base", judge(case.run(x), plain, exact, _terms(case))


def _case(device: Device, dtype: torch.dtype) -> ExpertCase:
    if device.is_rehearsal:
        return ExpertCase(device, TINY, dtype, ranks=_RANKS[:1])
    return ExpertCase(device, SMALL, dtype, ranks=_RANKS)


def _terms(case: ExpertCase) -> int:
    """Count the terms of both products, one upon the other."""
    return 4 * (case.shapes.hidden_size + case.shapes.width)


def _graph(device: Device) -> Found:
    """Capture once, change rows and adapters, replay; launched by hand it must give the same bits."""
    case = _case(device, dtypes_of(device)[0])
    num_rows, generator = 2 if device.is_rehearsal else 32, device.generator(4)
    x = random(device, generator, case.dtype, num_rows, case.shapes.hidden_size)
    num_tiles = num_rows // 16 + case.num_adapters
    segments = segments_of(device, [0] * num_rows, num_tiles)
    outs: dict[str, Tensor] = {}

    def launch() -> None:
        outs["with adapters"], outs["of the base"] = case.run(x, segments), case.run(x)

    replay = device.capture([launch])
    for turn in range(1 if device.is_rehearsal else 8):
        x.copy_(random(device, generator, case.dtype, *x.shape))
        if turn % 2:
            x.copy_(x[:1].expand_as(x).clone())  # all rows choose the same experts
        slots = sorted((row * (turn + 1)) % case.num_adapters for row in range(num_rows))
        (mine,), (given,) = segments.passes, segments_of(device, slots, num_tiles).passes
        take(mine, given)
        expected = {"with adapters": case.run(x, segments), "of the base": case.run(x)}
        expected = {name: out.clone() for name, out in expected.items()}
        replay()
        for name, out in outs.items():
            yield f"replay {turn}, {name}", same(out, expected[name])
        share = float(outs["with adapters"].isfinite().double().mean())
        yield f"replay {turn}, finite", Verdict(1 - share, 0.0, share == 1.0)
