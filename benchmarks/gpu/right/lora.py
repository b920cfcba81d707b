"""Shrink and expand."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.device import Device, random
from benchmarks.gpu.errors import Verdict, judge, same
from benchmarks.gpu.lora_case import BLOCK_ROWS, LoRACase, Rows, add_plainly, make_lora
from benchmarks.gpu.right.check import Check, Found, dtypes_of, short
from benchmarks.gpu.shapes import shapes_of
from kernels.norms.add_rms_norm import add_rms_norm_reference

_RANKS = (1, 2, 5, 8, 15, 16, 17, 32, 33, 64, 100, 128, 256, 512)
_TINY_RANKS = (1, 5, 17)


def checks(device: Device) -> Iterator[Check]:
    """Yield every check of LoRA."""
    modules = shapes_of(device).modules
    ranks = _TINY_RANKS if device.is_rehearsal else _RANKS
    many = 3 if device.is_rehearsal else 64
    for dtype in dtypes_of(device):
        name = short(dtype)
        yield Check("lora_add", f"{name} ranks", partial(_ranks, dtype=dtype, ranks=ranks))
        yield Check("lora_add", f"{name} odd widths", partial(_odd, dtype=dtype))
        yield Check("lora_add", f"{name} extras", partial(_extras, dtype=dtype))
    dtype = dtypes_of(device)[0]
    for module, widths in modules.items():
        check = partial(_counts, dtype=dtype, widths=widths, most=many)
        yield Check("lora_add", f"{short(dtype)} {module}", check)
        yield Check("lora_add in a graph", module, partial(_graph, dtype=dtype, widths=widths, most=many))
    for dtype in dtypes_of(device):
        yield Check("expand_norm", short(dtype), partial(_norm, dtype=dtype))
    dtype = dtypes_of(device)[0]
    yield Check("lora_add and NaN", "in one adapter", partial(_nan, dtype=dtype))
    yield Check("lora_add of one row", "whatever its neighbours", partial(_neighbours, dtype=dtype))


def _ranks(device: Device, dtype: torch.dtype, ranks: tuple[int, ...]) -> Found:
    """All ranks in one batch, one to three rows each, base rows between them."""
    widths = shapes_of(device).modules["qkv"]
    slots = [slot for slot in range(len(ranks)) for _ in range(1 + slot % 3)]
    slots[2:2] = [-1, -1]
    scales = [0.5 + row % 4 for row in range(len(slots))]
    case = make_lora(device, ranks=ranks, slots=slots, widths=widths, dtype=dtype, scales=scales)
    yield f"{len(ranks)} ranks", _judged(case)


def _judged(case: LoRACase, block_rows: int = BLOCK_ROWS) -> Verdict:
    expected = add_plainly(case, case.x.dtype), add_plainly(case, torch.float64)
    case.device.poison()
    return judge(case.run(block_rows), *expected, case.x.shape[1])


def _odd(device: Device, dtype: torch.dtype) -> Found:
    for in_features, out_slices in ((33, (131, 3)), (129, (40,)), (2049, (7, 200, 16))):
        if device.is_rehearsal and in_features > 129:
            continue
        widths = in_features, out_slices
        case = make_lora(device, ranks=[8, 20], slots=[0] * 5 + [-1] + [1] * 17, widths=widths, dtype=dtype)
        yield f"{in_features} to {out_slices}", _judged(case)


def _extras(device: Device, dtype: torch.dtype) -> Found:
    """Bias, DoRA, and adapters without either, rows of one adapter with scales of their own."""
    widths = shapes_of(device).modules["qkv"]
    slots = [0] * 3 + [1] * 18 + [2] * 2 + [-1] * 2 + [3] * 2
    scales = [0.5, 1.0, 0.0, *([1.0, -0.5, 0.25] * 6), 1.0, 2.0, 1.0, 1.0, 3.0, 1.0]
    case = make_lora(
        device,
        ranks=[8, 16, 20, 4],
        slots=slots,
        widths=widths,
        dtype=dtype,
        scales=scales,
        has_extras=True,
    )
    for block_rows in (BLOCK_ROWS, 32):
        yield f"bias and DoRA, tiles of {block_rows}", _judged(case, block_rows)


def _counts(device: Device, dtype: torch.dtype, widths: tuple[int, tuple[int, ...]], most: int) -> Found:
    """From one adapter for a prompt's rows to one for every row."""
    prompt = 20 if device.is_rehearsal else 300
    for slots in ([0], [0] * prompt, [row // 4 for row in range(most)], list(range(most))):
        ranks = [16] * (max(slots) + 1)
        case = make_lora(device, ranks=ranks, slots=slots, widths=widths, dtype=dtype, seed=len(slots))
        block_rows = 64 if len(slots) == prompt else BLOCK_ROWS
        yield f"{len(slots)} rows, {len(ranks)} adapters", _judged(case, block_rows)


def _graph(device: Device, dtype: torch.dtype, widths: tuple[int, tuple[int, ...]], most: int) -> Found:
    """Capture with one adapter, replay with many in other slots, with scales, and with none."""
    num_slots = min(8, most)
    ranks = [(16, 64, 8, 33)[slot % 4] for slot in range(num_slots)]
    case = make_lora(device, ranks=ranks, slots=[0] * most, widths=widths, dtype=dtype, has_extras=True)
    rows = Rows(device, case.slots, num_tiles=most // BLOCK_ROWS + num_slots)
    given, out = case.out.clone(), case.out

    def launch() -> None:
        out.copy_(given)
        rows.add(out, case.x, case.module)

    replay = device.capture([launch])
    batches = [
        sorted(row % num_slots for row in range(most)),
        sorted(row % 3 - 1 for row in range(most)),
        [-1] * most,
        [num_slots - 1] * most,
    ]
    for turn, slots in enumerate(batches):
        order = [(slot + turn) % num_slots for slot in range(num_slots)]
        case.slots, case.scales = slots, [0.5 + (row + turn) % 3 for row in range(most)]
        case.point(order)
        rows.update(slots, case.scales)
        case.x.copy_(torch.randn(case.x.shape, device=device.name, generator=device.generator(turn)))
        case.out = given
        expected = add_plainly(case, dtype, order), add_plainly(case, torch.float64, order)
        replay()
        yield f"replay {turn}", judge(out, *expected, case.x.shape[1])


def _norm(device: Device, dtype: torch.dtype) -> Found:
    """Expanded within the norm that follows, held to adapters added plainly, then added and normed."""
    generator = device.generator(7)
    for module in ("o", "down"):
        in_features, (width,) = shapes_of(device).modules[module]
        for slots in ([0], [-1, 0, 0, 1, 2, 3] * 5):
            case = make_lora(
                device,
                ranks=[16, 64, 5, 40],
                slots=sorted(slots),
                widths=(in_features, (width,)),
                dtype=dtype,
                scales=[0.5 + row % 3 for row in range(len(slots))],
                has_extras=True,
            )
            weight, eps = random(device, generator, torch.float32, width), 1e-5
            stream = random(device, generator, dtype, len(slots), width)
            plain_stream = stream.clone()
            plain = add_rms_norm_reference(plain_stream, add_plainly(case, dtype), weight, eps)
            wide = stream.double() + add_plainly(case, torch.float64)
            exact = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()
            device.poison()
            out = case.run_in_norm(stream, weight, eps)
            yield f"{module}, {len(slots)} rows", judge(out, plain, exact, in_features)
            yield f"{module}, {len(slots)} rows: stream", judge(stream, plain_stream, wide, in_features)


def _nan(device: Device, dtype: torch.dtype) -> Found:
    widths = shapes_of(device).modules["qkv"]
    slots = [0] * 5 + [1] * 20 + [-1] * 2 + [2] * 6
    case = make_lora(device, ranks=[16, 32, 8], slots=slots, widths=widths, dtype=dtype)
    clean = case.run()
    case.adapters[1].a.fill_(float("nan"))
    case.x[2] = float("nan")
    out = case.run()
    others = [row for row, slot in enumerate(slots) if slot != 1 and row != 2]
    mine = [row for row, slot in enumerate(slots) if slot == 1]
    yield "other rows", same(out[others], clean[others])
    share = float(out[mine].isnan().double().mean())
    yield "its own rows", Verdict(1 - share, 0.0, share == 1.0)


def _neighbours(device: Device, dtype: torch.dtype) -> Found:
    """A row's bits must not depend on the batch."""
    widths = shapes_of(device).modules["down"]
    slots = [0] * 20 + [1] * 3
    case = make_lora(device, ranks=[16, 64], slots=slots, widths=widths, dtype=dtype)
    whole = case.run()
    for row in (0, 19, 20):
        out = case.out[row : row + 1].clone()
        Rows(device, [slots[row]]).add(out, case.x[row : row + 1].contiguous(), case.module)
        yield f"row {row}", same(out, whole[row : row + 1])
