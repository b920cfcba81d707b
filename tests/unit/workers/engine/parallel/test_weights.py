"""What ranks cannot share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.workers.engine.model.test_config import load
from workers.engine.core.errors import ConfigError
from workers.engine.parallel.shard import Shard
from workers.engine.parallel.weights import cut_config


def test_heads_that_are_normed_together_stay_together(tmp_path: Path) -> None:
    config = load(tmp_path, "Olmo2ForCausalLM")

    assert cut_config(config, Shard(0, 1)) == config
    with pytest.raises(ConfigError, match="Olmo2ForCausalLM norms queries and keys over all heads"):
        cut_config(config, Shard(0, 2))
