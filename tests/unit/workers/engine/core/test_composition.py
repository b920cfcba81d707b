"""What a request's adapters come to."""

from __future__ import annotations

import struct

from workers.engine.core.composition import AcquiredSlot, Member, composition_of, describe, pinned
from workers.engine.core.lora_request import LoRAMix, LoRARequest

SQL, CODE = LoRARequest("sql", 1, "a"), LoRARequest("code", 2, "b", scale=0.5)


def test_a_composition_has_one_effective_scale_per_adapter_in_the_order_given() -> None:
    assert composition_of(None) == ()
    assert composition_of(CODE) == (Member(LoRARequest("code", 2, "b"), 0.5),)
    assert composition_of(LoRAMix([(CODE, -3.0), (SQL, 1)])) == (
        Member(LoRARequest("code", 2, "b"), -1.5),
        Member(SQL, 1.0),
    )


def test_scales_are_what_the_kernels_make_of_them() -> None:
    (member,) = composition_of(LoRARequest("sql", 1, "a", scale=0.1))

    assert member.scale != 0.1
    assert member.scale == struct.unpack("f", struct.pack("f", 0.1))[0]


def test_a_pinned_composition_names_the_revisions_that_were_found() -> None:
    composition = composition_of(LoRAMix([(SQL, 1.0), (CODE, 1.0)]))

    found = pinned(composition, [AcquiredSlot("sha256:0", 3), AcquiredSlot("sha256:1", 0)])

    assert [(member.lora.revision, member.scale) for member in found] == [
        ("sha256:0", 1.0),
        ("sha256:1", 0.5),
    ]


def test_messages_name_every_adapter() -> None:
    assert describe(()) == "the base model"
    assert describe(composition_of(SQL)) == "adapter 'sql'"
    assert describe(composition_of(LoRAMix([(SQL, 1.0), (CODE, 2.0)]))) == "adapters 'sql', 'code'"
