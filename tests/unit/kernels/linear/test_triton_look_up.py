"""Byte permutations, carried out here as PTX defines them, find what the table has."""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Callable

from kernels.linear.triton_look_up import ASSEMBLY, CONSTRAINTS, PLANES, WORDS

MASK = 0xFFFFFFFF
TABLE = [(-1.37) ** place / 7 for place in range(16)]


def permuted(low: int, high: int, selector: int) -> int:
    """`prmt.b32`: each digit of the selector chooses one of eight bytes, none with its highest bit set."""
    found = 0
    for place in range(4):
        digit = selector >> 4 * place & 15
        assert digit < 8
        found |= ((high << 32 | low) >> 8 * digit & 255) << 8 * place
    return found


OPERATIONS: dict[str, Callable[..., int]] = {
    "and.b32": operator.and_,
    "or.b32": operator.or_,
    "shr.u32": operator.rshift,
    "prmt.b32": permuted,
}


def run(assembly: str, given: dict[str, int]) -> dict[str, int]:
    """Carry out instructions of registers and constants; outputs are the registers that nobody gave."""
    known = dict(given)

    def value(operand: str) -> int:
        return int(operand, 0) if operand[0].isdigit() else known[operand]

    for line in assembly.strip("{} ").split(";"):
        if not line.strip() or line.strip().startswith(".reg"):
            continue
        opcode, target, *sources = re.split(r"[\s,]+", line.strip())
        first, *rest = (value(one) for one in sources)
        known[target] = OPERATIONS[opcode](first, *rest) & MASK
    return known


def test_every_code_in_every_place_is_looked_up_to_the_bits() -> None:
    numbers = [struct.unpack("<I", struct.pack("<f", one))[0] for one in TABLE]
    given = {}
    for plane in range(PLANES):
        for word in range(WORDS):
            held = sum((numbers[4 * word + place] >> 8 * plane & 255) << 8 * place for place in range(4))
            for copy in range(4):
                given[f"${9 + 4 * (plane * WORDS + word) + copy}"] = held
    for first in range(16):
        codes = [(first + 3 * place) % 16 for place in range(8)]  # byte by byte, the lower one first
        given["$8"] = sum(code << 4 * place for place, code in enumerate(codes))

        known = run(ASSEMBLY.value, given)

        found = [known[f"${place}"] for place in range(8)]
        assert found == [numbers[code] for code in codes[::2] + codes[1::2]]


def test_outputs_are_not_given_the_registers_of_inputs_that_are_still_read() -> None:
    assert CONSTRAINTS.value == ",".join(["=&r"] * 8 + ["r"] * (1 + 4 * 16))
