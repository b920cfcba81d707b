"""Norms, gates and the head's product."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.device import Device, random
from benchmarks.gpu.errors import judge, same
from benchmarks.gpu.right.check import Check, Found, dtypes_of, short
from benchmarks.gpu.shapes import shapes_of
from kernels.registry import by_name, resolve

_WIDTHS = (64, 96, 576, 896, 1024, 2048, 3072, 4096, 5120, 8192, 11008, 14336, 16384)
_GATE_WIDTHS = (100, 1536, 11008, 14336)
_GATES: dict[str, tuple[float, ...]] = {"swiglu": (), "geglu": (), "clamped_swiglu": (1.702, 7.0)}
"""With their constants."""
_NUM_ROWS = (1, 7, 64)


def checks(device: Device) -> Iterator[Check]:
    """Yield every check of these."""
    for dtype in dtypes_of(device):
        for width in _WIDTHS[:2] if device.is_rehearsal else _WIDTHS:
            yield Check("add_rms_norm", f"{short(dtype)} {width}", partial(_norm, dtype=dtype, width=width))
        widths = _GATE_WIDTHS[:1] if device.is_rehearsal else _GATE_WIDTHS
        for name in _GATES:
            yield Check(name, short(dtype), partial(_gate, name=name, dtype=dtype, widths=widths))
    yield Check("rows in a graph", "norm and gate", _graph)
    if not device.is_rehearsal:
        yield Check("head", "bfloat16 with float32 sums", _head)


def _norm(device: Device, dtype: torch.dtype, width: int) -> Found:
    generator, op = device.generator(width), resolve("add_rms_norm", device.name, dtype, "triton")
    reference = by_name("add_rms_norm").reference
    for num_rows in _NUM_ROWS[:2] if device.is_rehearsal else _NUM_ROWS:
        for adds in (True, False):
            residual = 3 * random(device, generator, dtype, num_rows, width)
            weight = random(device, generator, torch.float32, width)
            delta = random(device, generator, dtype, num_rows, width) if adds else None
            plain_sum = residual.clone()
            plain = reference(plain_sum, delta, weight, 1e-5)
            wide = plain_sum.double()
            exact = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
            device.poison()
            out = op(residual, delta, weight, 1e-5)
            case = f"{num_rows} rows{', added' * adds}"
            yield case, judge(out, plain, exact, width)
            yield f"{case}: stream", same(residual, plain_sum)


def _gate(device: Device, name: str, dtype: torch.dtype, widths: tuple[int, ...]) -> Found:
    generator, op = device.generator(3), resolve(name, device.name, dtype, "triton")
    reference, constants = by_name(name).reference, _GATES[name]
    for width in widths:
        for num_rows in _NUM_ROWS[:2] if device.is_rehearsal else _NUM_ROWS:
            gate_up = 3 * random(device, generator, dtype, num_rows, 2 * width)
            device.poison()
            out = op(gate_up, *constants)
            plain, exact = (reference(one, *constants) for one in (gate_up, gate_up.double()))
            # The gate's own error grows with its argument: a term more than one.
            yield f"{num_rows} x {width}", judge(out, plain, exact, 4)


def _graph(device: Device) -> Found:
    """Capture once, change the contents, replay; the same kernel launched by hand must give the same bits."""
    shapes, dtype = shapes_of(device), dtypes_of(device)[0]
    generator = device.generator(5)
    norm, gate = (resolve(op, device.name, dtype, "triton") for op in ("add_rms_norm", "swiglu"))
    residual, delta = (random(device, generator, dtype, 32, shapes.hidden_size) for _ in range(2))
    gate_up = random(device, generator, dtype, 32, 2 * shapes.intermediate_size)
    weight = random(device, generator, torch.float32, shapes.hidden_size)
    outs = {}

    def launch() -> None:
        outs["norm"], outs["gate"] = norm(residual, delta, weight, 1e-5), gate(gate_up)

    replay = device.capture([launch])
    for turn in range(2):
        for tensor in (residual, delta, gate_up):
            tensor.copy_(random(device, generator, dtype, *tensor.shape))
        by_hand = norm(residual.clone(), delta, weight, 1e-5), gate(gate_up)
        replay()
        for out, expected, name in zip(outs.values(), by_hand, outs, strict=True):
            yield f"{name}, replay {turn}", same(out, expected)


def _head(device: Device) -> Found:
    shapes, generator = shapes_of(device), device.generator(6)
    weight = random(device, generator, torch.bfloat16, shapes.vocab_size, shapes.hidden_size)
    for num_rows in _NUM_ROWS:
        x = random(device, generator, torch.bfloat16, num_rows, shapes.hidden_size)
        out = torch.mm(x, weight.T, out_dtype=torch.float32)
        yield f"{num_rows} rows", judge(out, out, x.double() @ weight.double().T, shapes.hidden_size)
