"""A tree of values and tensors as skeleton and buffer, and back."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from kernels.lora.tables import LoRASlice, PackedLoRA, Slice
from workers.engine.core.tensor_pack import ALIGN_BYTES, TensorPack, unpack
from workers.engine.lora.tables.adapter_weights import AdapterWeights
from workers.engine.lora.tables.packed_slots import PackedKey


def _shipped(tree):
    pack = TensorPack(tree)
    buffer = torch.zeros(pack.num_bytes, dtype=torch.uint8)
    pack.write(buffer)
    return unpack(pack.skeleton, buffer), buffer


def _adapter() -> AdapterWeights:
    a, b_t = torch.randn(16, 24), torch.randn(16, 8)
    packed = PackedLoRA(a, (LoRASlice(Slice(0, 8), Slice(0, 16), b_t),))
    return AdapterWeights("sha256:1", 4, {PackedKey(0, "o"): packed})


def test_an_adapter_comes_back_as_views_on_the_one_buffer():
    adapter = _adapter()

    copy, buffer = _shipped(adapter)

    packed, original = copy.modules[PackedKey(0, "o")], adapter.modules[PackedKey(0, "o")]
    assert (copy.digest, copy.rank) == (adapter.digest, adapter.rank)
    assert torch.equal(packed.a, original.a)
    assert torch.equal(packed.slices[0].b_t, original.slices[0].b_t)
    assert packed.slices[0].out == Slice(0, 8)
    assert packed.a.untyped_storage().data_ptr() == buffer.data_ptr()


def test_every_dtype_shape_and_plain_value_survives():
    tree = {
        "tensors": (
            torch.tensor(3, dtype=torch.int64),
            torch.zeros(0, 5),
            torch.arange(3, dtype=torch.uint8),
            torch.randn(3, 5).to(torch.bfloat16),
            torch.randn(4, 6).T,
            torch.tensor([True, False]),
        ),
        "plain": [1, 2.5, None, "text", b"bytes", True],
    }

    copy, _ = _shipped(tree)

    assert copy["plain"] == tree["plain"]
    for mine, theirs in zip(copy["tensors"], tree["tensors"], strict=True):
        assert isinstance(theirs, torch.Tensor)
        assert mine.dtype is theirs.dtype
        assert torch.equal(mine, theirs)


def test_tensors_are_aligned_and_one_that_occurs_twice_is_stored_once():
    shared, other = torch.randn(3), torch.randn(5)

    (first, second, third), buffer = _shipped((shared, shared, other))

    assert first.data_ptr() == second.data_ptr()
    assert third.data_ptr() - buffer.data_ptr() == ALIGN_BYTES


def test_a_buffer_too_small_is_refused_with_the_size_it_needs():
    pack = TensorPack(torch.zeros(100))

    with pytest.raises(ValueError, match="give at least 400 bytes"):
        pack.write(torch.zeros(10, dtype=torch.uint8))


def test_a_skeleton_that_reaches_beyond_its_buffer_is_refused():
    skeleton, buffer = TensorPack(torch.ones(25, 4)).skeleton, torch.zeros(400, dtype=torch.uint8)

    assert unpack(skeleton, buffer).shape == (25, 4)
    with pytest.raises(pickle.UnpicklingError, match="a pack of 399 bytes names a tensor at"):
        unpack(skeleton, buffer[:399])


@pytest.mark.parametrize("foreign", [os.getcwd, pickle.Unpickler, eval])
def test_a_skeleton_that_names_anything_but_the_engines_own_classes_is_refused(foreign):
    skeleton = pickle.dumps(foreign)

    with pytest.raises(pickle.UnpicklingError, match="only classes of the engine"):
        unpack(skeleton, torch.zeros(0, dtype=torch.uint8))


def test_functions_and_borrowed_names_inside_the_engines_modules_are_refused_too():
    for name in ("unpack", "io.BytesIO"):
        skeleton = (
            b"\x80\x04\x8c\x1fworkers.engine.core.tensor_pack"
            b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
        )

        with pytest.raises(pickle.UnpicklingError):
            unpack(skeleton, torch.zeros(0, dtype=torch.uint8))
