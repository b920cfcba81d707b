"""Products with quantised weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.device import Device, random
from benchmarks.gpu.errors import Verdict, judge, same
from benchmarks.gpu.quantized_case import CODINGS, TIMED, Coding, make_weight
from benchmarks.gpu.right.check import Check, Found, dtypes_of, short
from benchmarks.gpu.shapes import shapes_of
from kernels.linear.quantized_weight import QuantizedWeight
from kernels.registry import by_name, resolve

_NUM_ROWS = (1, 7, 16, 17, 33, 64, 65, 200, 300)
_ODD = ((67, 192), (129, 1113))
_OF_OTHER_DTYPES = ("NF4", "int8 g48")
"""Each takes seconds to compile in every tile."""
_OTHERS = 3
"""Columns of the output that belong to others, before and behind."""


def checks(device: Device) -> Iterator[Check]:
    """Yield every check of these."""
    first, *others = dtypes_of(device)
    pairs = [(first, name) for name in CODINGS]
    pairs += [(dtype, name) for dtype in others for name in _OF_OTHER_DTYPES]
    for dtype, name in pairs:
        check = partial(_odd, dtype=dtype, coding=CODINGS[name])
        yield Check("quantized_linear", f"{short(dtype)} {name}, odd widths", check)
    for module, (width, slices) in shapes_of(device).modules.items():
        for name in TIMED:
            check = partial(_large, dtype=first, coding=CODINGS[name], widths=(width, sum(slices)))
            yield Check("quantized_linear", f"{short(first)} {name}, {module}", check)
    yield Check("quantized_linear in a graph", "x changes", partial(_graph, dtype=first))
    yield Check("quantized_linear of one row", "whatever its neighbours", partial(_neighbours, dtype=first))


def _odd(device: Device, dtype: torch.dtype, coding: Coding) -> Found:
    for (out_features, in_features), has_bias in zip(_ODD, (True, False), strict=True):
        weight = make_weight(device, device.generator(in_features), coding, out_features, in_features)
        for num_rows in _NUM_ROWS[:2] if device.is_rehearsal else _NUM_ROWS:
            case = f"{num_rows} x {in_features} to {out_features}"
            verdict, others = _judged(device, weight, num_rows, dtype, has_bias=has_bias, others=_OTHERS)
            yield case, verdict
            yield f"{case}: columns of others", others
        if device.is_rehearsal:
            return


def _large(device: Device, dtype: torch.dtype, coding: Coding, widths: tuple[int, int]) -> Found:
    """Run what an engine runs: kernels are compiled here that later stages find in the cache."""
    weight = make_weight(device, device.generator(7), coding, widths[1], widths[0])
    for num_rows in _NUM_ROWS[:1] if device.is_rehearsal else (1, 32, 64, 256, 500):
        yield f"{num_rows} rows", _judged(device, weight, num_rows, dtype, has_bias=False, others=0)[0]


def _judged(
    device: Device, weight: QuantizedWeight, num_rows: int, dtype: torch.dtype, *, has_bias: bool, others: int
) -> tuple[Verdict, Verdict]:
    """Hold a product to its error, and the columns around it to their bits."""
    op, generator = resolve("quantized_linear", device.name, dtype, "triton"), device.generator(num_rows)
    x = random(device, generator, dtype, num_rows, weight.in_features)
    bias = random(device, generator, dtype, weight.out_features) if has_bias else None
    before = random(device, generator, dtype, num_rows, weight.out_features + 2 * others)
    mine = slice(others, others + weight.out_features)
    out, plain = before.clone(), before.clone()
    by_name("quantized_linear").reference(plain, others, x, weight, bias)
    device.poison()
    op(out, others, x, weight, bias)
    verdict = judge(out[:, mine], plain[:, mine], _exact(x, weight, bias), weight.in_features)
    around = [torch.cat((one[:, :others], one[:, mine.stop :]), dim=1) for one in (out, before)]
    return verdict, same(*around)


def _exact(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    plain = weight.coded_rows(0, weight.out_features).to(x.dtype).double()
    product = x.double() @ plain.T
    return product if bias is None else product + bias.double()


def _graph(device: Device, dtype: torch.dtype) -> Found:
    """Capture products with and without splits, then change x; bits must be those of launches by hand."""
    shapes, generator = shapes_of(device), device.generator(8)
    op = resolve("quantized_linear", device.name, dtype, "triton")
    for module in ("o", "gate_up"):
        width, slices = shapes.modules[module]
        weight = make_weight(device, generator, CODINGS["NF4"], sum(slices), width)
        x = random(device, generator, dtype, 32 if not device.is_rehearsal else 2, width)
        out, by_hand = (x.new_empty(x.shape[0], weight.out_features) for _ in range(2))
        replay = device.capture([partial(op, out, 0, x, weight, None)])
        for turn in range(3):
            x.copy_(random(device, generator, dtype, *x.shape))
            op(by_hand, 0, x, weight, None)
            out.fill_(float("nan"))
            replay()
            yield f"{module}, replay {turn}", same(out, by_hand)


def _neighbours(device: Device, dtype: torch.dtype) -> Found:
    """Bits of a row alone are those it has among others, and NaN in one row stays there."""
    shapes, generator = shapes_of(device), device.generator(9)
    op = resolve("quantized_linear", device.name, dtype, "triton")
    width, (out_width,) = shapes.modules["down"]
    most = 2 if device.is_rehearsal else 32
    for name in TIMED:
        weight = make_weight(device, generator, CODINGS[name], out_width, width)
        x = random(device, generator, dtype, most, width)
        x[1] = float("nan")
        whole, alone = x.new_empty(most, out_width), x.new_empty(1, out_width)
        op(whole, 0, x, weight, None)
        op(alone, 0, x[:1].contiguous(), weight, None)
        yield f"{name}, a row's bits", same(alone, whole[:1])
        is_nan = whole.isnan().all(dim=1)
        yield f"{name}, NaN", same(is_nan, torch.arange(most, device=device.name) == 1)
