"""In what form linear modules are kept: plain, quantised, or quantised but for the router."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.experts.grouped_linear import StackedLinear
from kernels.linear.linear import Linear
from kernels.linear.quantized_linear import QuantizedLinear
from kernels.registry import build
from tests.unit.workers.engine.model.family_cases import make_model
from workers.engine.core.errors import ConfigError
from workers.engine.model.config import load_model_config
from workers.engine.model.quantization import in_flight
from workers.engine.model.weights import load_weights
from workers.engine.parallel.shard import Shard
from workers.engine.parallel.weights import cut_weights

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral")
    make_model("mixtral").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("wanted", ["int8", "bitsandbytes"])
def test_experts_are_quantised_on_the_way_in_and_their_router_stays_plain(mixtral: Path, wanted: str) -> None:
    config = load_model_config(mixtral)
    quantize = in_flight(wanted, None)
    plain = load_weights(mixtral, config, torch.float32).layers[0]

    kept = load_weights(mixtral, config, torch.float32, in_flight=quantize).layers[0]
    spread = load_weights(mixtral, config, torch.float32, in_flight=quantize, keep_quantized=False).layers[0]

    assert torch.equal(kept.linears["router"].dense(), plain.linears["router"].dense())
    for name, experts in kept.experts.items():
        for one, other, exact in zip(experts, spread.experts[name], plain.experts[name], strict=True):
            assert isinstance(one, QuantizedLinear)
            assert isinstance(other, Linear)
            assert torch.equal(one.dense(), other.dense())
            assert not torch.equal(one.dense(), exact.dense())


def test_experts_of_a_device_lie_in_one_tensor_each_with_the_weights_it_has_on_a_cpu(mixtral: Path) -> None:
    config = load_model_config(mixtral)
    plain = load_weights(mixtral, config, torch.float32)

    stacked = load_weights(mixtral, config, torch.float32, kernels=build("cpu", torch.float32, "triton"))

    assert stacked.linear_bytes == plain.linear_bytes
    for name, experts in plain.layers[0].experts.items():
        stack = stacked.layers[0].experts[name]
        assert isinstance(stack, StackedLinear)
        whole = stack[0].dense().untyped_storage().data_ptr()
        for expert, linear in enumerate(experts):
            found = stacked.linear(0, name, expert).dense()
            assert torch.equal(found, linear.dense())
            assert found.untyped_storage().data_ptr() == whole


def test_ranks_share_plain_weights_only(mixtral: Path) -> None:
    config = load_model_config(mixtral)
    weights = load_weights(mixtral, config, torch.float32, in_flight=in_flight("int8", None))

    with pytest.raises(ConfigError, match=r"qkv is kept quantised.*set quant_storage to 'dequantize'"):
        cut_weights(weights, config, Shard(0, 2))
