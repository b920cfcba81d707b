"""Emulated intrinsics do what Intel's documentation says, and so does the hardware where there is some."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from kernels import registry
from kernels.cpu import library
from kernels.cpu.sources import LEVEL_FLAGS
from tests.emulated.intrinsics import Intrinsics
from tests.emulated.library import FLAGS, LEVEL, VARIABLE
from tests.guarded_memory import GuardedMemory
from tests.levels import Processor

AVX512 = {"emulated": ("avx2", FLAGS), "hardware": ("avx512_bf16", LEVEL_FLAGS["avx512"])}
HERE = [name for name, (needs, _) in AVX512.items() if needs in Processor.of_this_machine().instruction_sets]
DENORMAL, NAN, INF = 1e-40, float("nan"), float("inf")


@pytest.fixture(scope="module", params=HERE)
def intrinsics(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Intrinsics:
    """Our header, and what it stands for where this processor has that."""
    _needs, flags = AVX512[request.param]
    return Intrinsics.compiled(tmp_path_factory.mktemp(request.param), flags)


@pytest.mark.numeric
def test_a_run_that_is_told_to_emulate_resolves_kernels_at_that_level() -> None:
    emulated = os.environ.get(VARIABLE) == LEVEL

    assert registry.default_level("cpu") == (LEVEL if emulated else library.best_level())


def lanes(seed: int, low: float = -100, high: float = 100) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, 16).astype(np.float32)


def words(seed: int, dtype: Any = np.uint32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, 64 // np.dtype(dtype).itemsize, dtype)


def padded(*some: float) -> np.ndarray:
    return np.array([*some, *[0.0] * (16 - len(some))], np.float32)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Cut to bfloat16's bits, in uint16."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def widened(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.view(np.uint8).tobytes() == np.ascontiguousarray(expected).view(np.uint8).tobytes()


def test_dpbf16_adds_the_second_product_of_a_pair_first_and_rounds_after_each(intrinsics: Intrinsics) -> None:
    differ_in_order = 0
    for seed in range(200):
        acc, a, b = lanes(seed), *(bfloat16(np.tile(lanes(seed + i), 2) + seed) for i in (1000, 2000))
        # A product has 16 bits and all exponents are near each other: float64 holds each sum exactly.
        even, odd = (widened(a[i::2]).astype(np.float64) * widened(b[i::2]) for i in (0, 1))
        expected = ((acc + odd).astype(np.float32) + even).astype(np.float32)
        differ_in_order += not np.array_equal(
            expected, ((acc + even).astype(np.float32) + odd).astype(np.float32)
        )

        same_bits(intrinsics.vector("dpbf16_ps", acc, a, b), expected)

    assert differ_in_order > 0


def test_dpbf16_takes_denormals_for_zeros_and_returns_none(intrinsics: Intrinsics) -> None:
    smallest, large = 2.0**-126, 2.0**100
    acc = padded(DENORMAL, -DENORMAL, 0.0, 1.5 * smallest, -1.5 * smallest, 0.0, INF, 0.0)
    first = bfloat16(np.array([0, 0, DENORMAL, -1, 1, smallest, 1, INF] + [0] * 8))
    second = bfloat16(np.array([0, 0, large, smallest, smallest, 0.5, 1, DENORMAL] + [0] * 8))
    a, b = (np.stack([x, np.zeros_like(x)], axis=1).ravel() for x in (first, second))

    result = intrinsics.vector("dpbf16_ps", acc, a, b)

    same_bits(result[:7], np.array([0.0, 0.0, 0.0, 0.0, -0.0, 0.0, INF], np.float32))
    assert np.isnan(result[7])  # infinity times what counts as zero


@pytest.mark.parametrize("low_bits", [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_cvtneps_rounds_as_torch_but_for_denormals_and_quieted_nans(
    intrinsics: Intrinsics, low_bits: int
) -> None:
    bits = (np.arange(1 << 16, dtype=np.uint32) << 16) | np.uint32(low_bits)
    rounded = torch.from_numpy(bits.view(np.float32)).to(torch.bfloat16).view(torch.int16).numpy().view("u2")
    high = (bits >> 16).astype(np.uint16)
    is_nan, is_denormal = np.isnan(bits.view(np.float32)), (high & 0x7F80) == 0
    expected = np.where(is_denormal, high & 0x8000, np.where(is_nan, high | 0x0040, rounded))

    results = [intrinsics.vector("cvtneps_pbh", some)[:8].view("u2") for some in bits.reshape(-1, 16)]

    same_bits(np.concatenate(results), expected)


@pytest.mark.parametrize("name", ["min_ps", "max_ps"])
def test_the_second_operand_survives_beside_a_nan_and_among_zeros(intrinsics: Intrinsics, name: str) -> None:
    a, b = padded(NAN, 1, 0.0, -0.0, 1, 2), padded(1, NAN, -0.0, 0.0, 2, 1)

    result = intrinsics.vector(name, a, b)

    same_bits(result[:4], b[:4])
    assert result[4:6].tolist() == ([1, 1] if name == "min_ps" else [2, 2])


def test_scalef_rounds_once_even_into_denormals(intrinsics: Intrinsics) -> None:
    a = padded(1.5, 1.5, 1.0000001, -1.9999999, 1.5, 0.0, NAN, 1, 1, INF)
    b = padded(3.9, -0.5, -130, -149, 200, 500, 1, NAN, -150, -500)

    result = intrinsics.vector("scalef_ps", a, b)

    with np.errstate(over="ignore"):
        scaled = np.ldexp(a.astype(np.float64), np.floor(np.nan_to_num(b)).astype(int)).astype(np.float32)
    same_bits(result[:6], scaled[:6])
    assert np.isnan(result[6:8]).all()
    same_bits(result[8:], scaled[8:])


def test_arithmetic_is_rounded_to_nearest(intrinsics: Intrinsics) -> None:
    a, b, c = lanes(1), lanes(2), lanes(3)
    exact = a.astype(np.float64)
    halves = padded(0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -0.0)
    same_bits(intrinsics.vector("add_ps", a, b), a + b)
    same_bits(intrinsics.vector("sub_ps", a, b), a - b)
    same_bits(intrinsics.vector("mul_ps", a, b), a * b)
    same_bits(intrinsics.vector("div_ps", a, b), a / b)
    same_bits(intrinsics.vector("sqrt_ps", abs(a)), np.sqrt(abs(a)))
    same_bits(intrinsics.vector("fmadd_ps", a, b, c), (exact * b + c).astype(np.float32))
    same_bits(intrinsics.vector("roundscale_ps", halves), np.rint(halves))
    eight = a[:8] + a[8:]
    four = eight[:4] + eight[4:]
    two = four[:2] + four[2:]
    same_bits(intrinsics.vector("reduce_add_ps", a)[:1], two[:1] + two[1:])


def test_whole_numbers(intrinsics: Intrinsics) -> None:
    a, b = words(1), words(2)
    same_bits(intrinsics.vector("and_si512", a, b), a & b)
    same_bits(intrinsics.vector("slli_epi32", a), a << 16)
    same_bits(intrinsics.vector("srli_epi32", a), a >> 4)
    same_bits(intrinsics.vector("cvtepi32_ps", a), a.view(np.int32).astype(np.float32))
    same_bits(intrinsics.vector("cvtepu8_epi32", a), a.view(np.uint8)[:16].astype(np.uint32))
    same_bits(intrinsics.vector("cvtepu16_epi32", a), a.view(np.uint16)[:16].astype(np.uint32))
    same_bits(intrinsics.vector("set1_epi32", a), np.repeat(a[:1], 16))
    same_bits(intrinsics.vector("set1_ps", a), np.repeat(a[:1], 16))
    same_bits(intrinsics.vector("casts", a), a)
    same_bits(intrinsics.vector("setr_epi32", a), np.array([*range(15), -15], np.int32))


@pytest.mark.parametrize(
    ("suffix", "dtype"), [("epi16", np.uint16), ("ps", np.uint32), ("pd", np.uint64)], ids=str
)
def test_unpacking_interleaves_halves_of_each_128_bits(
    intrinsics: Intrinsics, suffix: str, dtype: Any
) -> None:
    a, b = words(1, dtype), words(2, dtype)
    both = np.stack([a.reshape(4, 2, -1), b.reshape(4, 2, -1)], axis=-1)  # [part, half, lane, operand]

    for half, name in enumerate(("unpacklo", "unpackhi")):
        same_bits(intrinsics.vector(f"{name}_{suffix}", a, b), both[:, half].ravel())


def test_permutations(intrinsics: Intrinsics) -> None:
    a, b, index = lanes(1), lanes(2), words(3)
    quarters = [*a.reshape(4, 4), *b.reshape(4, 4)]
    same_bits(intrinsics.vector("permutexvar_ps", index, a), a[index & 15])
    same_bits(intrinsics.vector("permutex2var_ps", a, index, b), np.concatenate([a, b])[index & 31])
    for name, order in (("shuffle_f32x4_88", (0, 2, 4, 6)), ("shuffle_f32x4_dd", (1, 3, 5, 7))):
        same_bits(intrinsics.vector(name, a, b), np.concatenate([quarters[i] for i in order]))


LOADS = (
    ("maskz_loadu_ps", np.uint32, 16),
    ("maskz_loadu_epi16", np.uint16, 32),
    ("maskz_loadu_epi16_256", np.uint16, 16),
)
STORES = (("mask_storeu_ps", np.uint32, 16), ("mask_storeu_epi16_256", np.uint16, 16))


@pytest.mark.parametrize(("name", "dtype", "count"), LOADS)
def test_a_masked_load_reads_nothing_beyond_its_lanes(
    intrinsics: Intrinsics, name: str, dtype: Any, count: int
) -> None:
    values = words(1, dtype)

    for some in range(count + 1):
        memory = GuardedMemory(values[:some].nbytes)
        memory.buffer[:] = values[:some].tobytes()
        loaded = intrinsics.load(name, memory.address, (1 << some) - 1).view(dtype)

        same_bits(loaded[:some], values[:some])
        assert not loaded[some:].any()


@pytest.mark.parametrize(("name", "dtype", "count"), STORES)
def test_a_masked_store_writes_nothing_beyond_its_lanes(
    intrinsics: Intrinsics, name: str, dtype: Any, count: int
) -> None:
    values, every_third = words(1, dtype), sum(1 << i for i in range(0, count, 3))

    for mask in (every_third, *((1 << some) - 1 for some in range(count + 1))):
        expected = np.array(
            [x if mask >> i & 1 else 0 for i, x in enumerate(values[: mask.bit_length()])], dtype
        )
        memory = GuardedMemory(expected.nbytes)
        intrinsics.store(name, memory.address, mask, values)

        assert bytes(memory.buffer) == expected.tobytes()


def test_a_load_without_a_mask_dies_there(intrinsics: Intrinsics) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.emulated.intrinsics import Intrinsics; from tests.guarded_memory import GuardedMemory\n"
        "memory = GuardedMemory(60); Intrinsics(Path(sys.argv[1])).load('loadu_ps', memory.address, 0)"
    )

    died = subprocess.run([sys.executable, "-c", program, intrinsics.path], check=False)

    assert died.returncode == -signal.SIGSEGV
