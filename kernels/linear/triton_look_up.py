"""Looks codes up in a table of 16 numbers by byte permutations, four codes and one byte of each at a time.

A table in memory would be read once for every weight, and by threads whose layout is not the product's. A
permutation chooses four of eight bytes: two of them, and one that chooses between their results, look four
codes up among 16 bytes. Numbers of four bytes take four such planes, and are then put together.
"""

from __future__ import annotations

import triton
import triton.language as tl

PLANES, WORDS = 4, 4
"""Bytes of a number, and words of the 16 bytes that the table's numbers have in one place."""


def _assembly() -> str:
    """Return the instructions that look up a register of four bytes, with two codes each.

    Outputs are the numbers of the lower codes, then of the upper ones. A permutation is told what to choose
    by the last four hexadecimal digits of a word: a register's codes are two such words as they stand, but
    for their highest bits, which choose between the table's halves.
    """
    names = [f"plane{plane}" for plane in range(PLANES)]
    registers = ["low", "high", "first", "second", "near", "pick", *names]
    codes = f"${2 * PLANES}"
    lines = [
        f".reg .b32 {', '.join(registers)};",
        f"and.b32 near, {codes}, 0x77777777;",
        f"shr.u32 pick, {codes}, 1;",
        "and.b32 pick, pick, 0x44444444;",
        "or.b32 pick, pick, 0x32103210;",
    ]
    for pair in range(2):
        if pair:
            lines += ["shr.u32 near, near, 16;", "shr.u32 pick, pick, 16;"]
        for plane, name in enumerate(names):
            # Each word is given once for each of the four bytes.
            words = [f"${2 * PLANES + 1 + 4 * (plane * WORDS + word)}" for word in range(WORDS)]
            lines += [
                f"prmt.b32 low, {words[0]}, {words[1]}, near;",
                f"prmt.b32 high, {words[2]}, {words[3]}, near;",
                f"prmt.b32 {name}, low, high, pick;",
            ]
        for byte, interleave in enumerate(("0x5140", "0x7362")):
            at = 2 * pair + byte
            lines += [
                f"prmt.b32 first, {names[0]}, {names[1]}, {interleave};",
                f"prmt.b32 second, {names[2]}, {names[3]}, {interleave};",
                f"prmt.b32 ${at}, first, second, 0x5410;",
                f"prmt.b32 ${PLANES + at}, first, second, 0x7632;",
            ]
    return "{ " + " ".join(lines) + " }"


ASSEMBLY = tl.constexpr(_assembly())
CONSTRAINTS = tl.constexpr(",".join(["=&r"] * 2 * PLANES + ["r"] * (1 + 4 * PLANES * WORDS)))


@triton.jit  # type: ignore[untyped-decorator]
def load_word(table_ptr, plane: tl.constexpr, word: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return one byte of each of four neighbours in the table, the first one lowest."""
    found = tl.full((), 0, tl.int32)
    for place in tl.static_range(4):
        bits = tl.load(table_ptr + 4 * word + place).to(tl.int32, bitcast=True)
        found |= ((bits >> (8 * plane)) & 255) << (8 * place)
    return found


@triton.jit
def load_words(table_ptr):  # type: ignore[no-untyped-def]
    """Return a table of 16 float32 as `look_up` reads it."""
    return (
        load_word(table_ptr, 0, 0),
        load_word(table_ptr, 0, 1),
        load_word(table_ptr, 0, 2),
        load_word(table_ptr, 0, 3),
        load_word(table_ptr, 1, 0),
        load_word(table_ptr, 1, 1),
        load_word(table_ptr, 1, 2),
        load_word(table_ptr, 1, 3),
        load_word(table_ptr, 2, 0),
        load_word(table_ptr, 2, 1),
        load_word(table_ptr, 2, 2),
        load_word(table_ptr, 2, 3),
        load_word(table_ptr, 3, 0),
        load_word(table_ptr, 3, 1),
        load_word(table_ptr, 3, 2),
        load_word(table_ptr, 3, 3),
    )


@triton.jit
def look_up(codes, words):  # type: ignore[no-untyped-def]
    """Return the numbers of the lower codes and of the upper ones, float32 like `codes` in shape."""
    lower, upper = tl.inline_asm_elementwise(
        ASSEMBLY,
        CONSTRAINTS,
        [
            codes,
            words[0],
            words[1],
            words[2],
            words[3],
            words[4],
            words[5],
            words[6],
            words[7],
            words[8],
            words[9],
            words[10],
            words[11],
            words[12],
            words[13],
            words[14],
            words[15],
        ],
        dtype=(tl.int32, tl.int32),
        is_pure=True,
        pack=4,
    )
    return lower.to(tl.float32, bitcast=True), upper.to(tl.float32, bitcast=True)
