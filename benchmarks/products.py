"""Every product of a step by each library, beside its floor: `python -m benchmarks.products`.

The floor of a product is the longer of two times: that in which memory yields its weights, and that in
which the processor does its multiply-adds. Bandwidth and peak are measured in the same run. Times are
processor time of one thread, the least of a few rounds, since others may use the machine; weights take turns,
so that no cache keeps them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import describe_run, load_average
from benchmarks.report import Row, table
from benchmarks.workload import Geometry
from kernels.linear.linear import _multiply_widened, can_pack, linear_compiled
from kernels.registry import default_level, resolve

_ROTATED_BYTES = 64 << 20
_MAX_COPIES = 6


class Library(NamedTuple):
    """One way to multiply: how it keeps weights, and the product."""

    dtype: torch.dtype
    pack: Callable[[Tensor], Tensor]
    multiply: Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Print the floors and a row for every product and number of rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.products", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 512], metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of which the least time counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_before = load_average()
    with torch.inference_mode():
        bytes_per_s, flops_per_s = _bandwidth(options.rounds), _peak(options.rounds)
        rows = list(_rows(options.rows, options.rounds, bytes_per_s, flops_per_s))
    facts = describe_run([f"kernels {default_level('cpu')}"], num_threads=1)
    facts["load before and after"] = f"{load_before}, {load_average()}"
    print("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    print(f"\n{bytes_per_s / 1e9:.1f} GB/s read, {flops_per_s / 1e9:.0f} GFLOP/s by torch's best product\n")
    print(table(rows))


def _rows(numbers: list[int], rounds: int, bytes_per_s: float, flops_per_s: float) -> Iterator[Row]:
    libraries = dict(_libraries())
    yield ["product", "rows", "bf16 floor us", "f32 floor us", *libraries, "ours / floor"]
    for name, in_features, out_features in _shapes():
        for num_rows in numbers:
            if name == "head" and num_rows > _HEAD_ROWS:
                continue
            floors = [
                max(
                    in_features * out_features * size / bytes_per_s,
                    2 * num_rows * in_features * out_features / flops_per_s,
                )
                for size in (2, 4)
            ]
            times = {
                label: _measure(one, num_rows, in_features, out_features, rounds)
                for label, one in libraries.items()
                if not (label == _SLOW and num_rows * out_features > _TOO_SLOW)
            }
            shown = [f"{times[label] * 1e6:.0f}" if label in times else "" for label in libraries]
            ratio = times["ours bf16"] / floors[0]
            yield [name, str(num_rows), *(f"{one * 1e6:.0f}" for one in floors), *shown, f"{ratio:.2f}"]


_HEAD_ROWS = 32
_SLOW = "torch bf16"
_TOO_SLOW = 1 << 17


def _shapes() -> Iterator[tuple[str, int, int]]:
    """Yield (name, in_features, out_features) of the modules of a layer, as they are packed, and the head."""
    of = Geometry()
    hidden, inner = of.hidden_size, of.intermediate_size
    yield "qkv", hidden, (of.num_heads + 2 * of.num_kv_heads) * of.head_dim
    yield "o", of.num_heads * of.head_dim, hidden
    yield "gate_up", hidden, 2 * inner
    yield "down", inner, hidden
    yield "head", hidden, of.vocab_size


def _libraries() -> Iterator[tuple[str, Library]]:
    half, single = torch.bfloat16, torch.float32

    def as_it_is(weight: Tensor) -> Tensor:
        return weight

    level = default_level("cpu")
    kernel = resolve("linear", "cpu", half, level)
    yield "ours bf16", Library(half, kernel.pack, lambda x, w: kernel.multiply(x, w, None))
    if level == "avx512_bf16":
        compiled = linear_compiled(level)
        yield "C++ bf16", Library(half, as_it_is, lambda x, w: compiled.multiply(x, w, None))
    yield "widened bf16", Library(half, as_it_is, lambda x, w: _multiply_widened(x, w, None))
    yield _SLOW, Library(half, as_it_is, F.linear)
    if can_pack():
        yield "oneDNN bf16", _onednn(half)
    yield "MKL f32", Library(single, as_it_is, F.linear)
    yield "oneDNN f32", _onednn(single)


def _onednn(dtype: torch.dtype) -> Library:
    private = torch.ops.mkldnn
    return Library(
        dtype,
        lambda weight: private._reorder_linear_weight(weight, 32),
        lambda x, weight: private._linear_pointwise.default(x, weight, None, "none", [], ""),
    )


def _measure(library: Library, num_rows: int, in_features: int, out_features: int, rounds: int) -> float:
    """Return the seconds that one product takes."""
    weight_bytes = in_features * out_features * library.dtype.itemsize
    num_copies = min(_MAX_COPIES, max(1, _ROTATED_BYTES // weight_bytes))
    weight = (torch.randn(out_features, in_features) / in_features**0.5).to(library.dtype)
    weights = [library.pack(weight.clone()) for _ in range(num_copies)]
    x = torch.randn(num_rows, in_features).to(library.dtype)

    def once() -> float:
        began_s = time.thread_time()
        for one in weights:
            library.multiply(x, one)
        return (time.thread_time() - began_s) / num_copies

    once()
    return min(once() for _ in range(rounds))


def _bandwidth(rounds: int) -> float:
    """Return the bytes that one thread reads from memory in a second."""
    data = torch.zeros(1 << 24, dtype=torch.int64)

    def once() -> float:
        began_s = time.thread_time()
        data.sum()
        return time.thread_time() - began_s

    once()
    return data.nbytes / min(once() for _ in range(rounds))


def _peak(rounds: int) -> float:
    """Return the most floating point operations that a square product of torch does in a second."""
    x = torch.randn(384, 384)

    def once() -> float:
        began_s = time.thread_time()
        for _ in range(4):
            x @ x
        return (time.thread_time() - began_s) / 4

    once()
    return 2 * 384**3 / min(once() for _ in range(4 * rounds))


if __name__ == "__main__":
    main()
