"""What ranks cannot share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.registry import build
from tests.unit.workers.engine.model.test_config import load
from workers.engine.core.errors import ConfigError
from workers.engine.model.weights import random_weights
from workers.engine.parallel.shard import Shard
from workers.engine.parallel.weights import cut_config, cut_weights


def test_heads_that_are_normed_together_stay_together(tmp_path: Path) -> None:
    config = load(tmp_path, "Olmo2ForCausalLM")

    assert cut_config(config, Shard(0, 1)) == config
    with pytest.raises(ConfigError, match="Olmo2ForCausalLM norms queries and keys over all heads"):
        cut_config(config, Shard(0, 2))


def test_sinks_follow_their_heads_and_an_expert_s_bias_is_added_once(tmp_path: Path) -> None:
    config = load(tmp_path, "GptOssForCausalLM", head_dim=16, num_local_experts=2, num_experts_per_tok=1)
    whole = random_weights(config, torch.float32, kernels=build("cpu", torch.float32))

    layers = [cut_weights(whole, config, Shard(rank, 2)).layers[0] for rank in (0, 1)]

    expected, sinks = whole.layers[0], [layer.sinks for layer in layers if layer.sinks is not None]
    assert expected.sinks is not None
    assert torch.equal(torch.cat(sinks), expected.sinks)
    for name, dim in (("gate_up", 0), ("down", 1)):
        parts = [layer.experts[name][1] for layer in layers]
        joined = torch.cat([part.dense() for part in parts], dim)
        assert torch.equal(joined, expected.experts[name][1].dense())
    assert layers[0].experts["down"][1].bias is not None
    assert layers[1].experts["down"][1].bias is None
    assert layers[0].experts["gate_up"][1].bias is not None
