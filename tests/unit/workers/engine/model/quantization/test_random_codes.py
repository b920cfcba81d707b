from __future__ import annotations

from typing import Any

import pytest
import torch

from workers.engine.core.errors import CheckpointError
from workers.engine.model.quantization import random_codes
from workers.engine.model.quantization.awq import AwqCheckpoint
from workers.engine.model.quantization.bitsandbytes import BitsAndBytesCheckpoint
from workers.engine.model.quantization.gptq import GptqCheckpoint

SHAPE = (24, 96)
AWQ = AwqCheckpoint(quant_method="awq", bits=4, group_size=32)
GPTQ = GptqCheckpoint(quant_method="gptq", bits=8, group_size=-1)
BYTES = BitsAndBytesCheckpoint(quant_method="bitsandbytes", load_in_8bit=True)
NF4 = BitsAndBytesCheckpoint(quant_method="bitsandbytes", load_in_4bit=True)


@pytest.mark.parametrize(
    ("wanted", "checkpoint", "bits", "block", "is_identity"),
    [
        ("bitsandbytes", None, 4, 64, False),
        ("int8", None, 8, 96, True),
        (None, AWQ, 4, 32, True),
        (None, GPTQ, 8, 96, True),
        (None, BYTES, 8, 96, True),
        ("bitsandbytes", NF4, 4, 64, False),
    ],
)
def test_they_have_the_layout_of_a_checkpoint_and_values_of_a_weights_size(
    wanted: str | None, checkpoint: Any, bits: int, block: int, is_identity: bool
) -> None:
    make = random_codes(wanted, checkpoint)
    assert make is not None

    weight = make(SHAPE, torch.Generator().manual_seed(1))

    dense = weight.dense()
    assert (weight.bits, weight.block, weight.is_identity) == (bits, block, is_identity)
    assert dense.shape == SHAPE
    assert 0.01 < float(dense.std()) < 0.03
    assert dense.abs().max() < 0.05


def test_a_plain_checkpoint_stays_plain() -> None:
    assert random_codes(None, None) is None


def test_groups_that_do_not_divide_the_inputs_are_refused() -> None:
    make = random_codes(None, AWQ)
    assert make is not None

    with pytest.raises(CheckpointError, match="group_size 32 does not divide its 40 inputs"):
        make((8, 40), torch.Generator())
