"""A model cut in two computes what the whole one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
from torch import Tensor

from workers.engine.core.errors import ConfigError
from workers.engine.parallel.shard import Shard

pytestmark = pytest.mark.numeric

ROOT = Path(__file__).parents[5]
TINY = ROOT / "examples" / "tiny"


def _logits(size: int, folder: Path) -> Tensor:  # [num_steps, num_prompts, vocab_size]
    meeting = folder / f"meeting-{size}"
    arguments = [str(TINY / "base"), str(TINY / "adapters" / "upper"), str(meeting)]
    command = [sys.executable, "-m", "tests.unit.workers.engine.parallel.rank", *arguments]
    ranks = [
        subprocess.Popen([*command, str(rank), str(size)], cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True)
        for rank in range(size)
    ]
    answers = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, [answer[1] for answer in answers]
    return torch.tensor(json.loads(answers[0][0]))


def test_two_ranks_that_get_steps_as_bytes_compute_the_logits_of_one(tmp_path: Path) -> None:
    alone, together = _logits(1, tmp_path), _logits(2, tmp_path)

    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    adapted, doubled, base = alone[-1]
    assert len({adapted.argmax().item(), doubled.argmax().item(), base.argmax().item()}) > 1


def test_what_cannot_be_divided_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match="3 key heads cannot be shared by 2 ranks"):
        Shard(0, 2).of(3, "key heads")


def test_fused_matrices_are_cut_each_by_itself() -> None:
    fused = torch.arange(6).view(6, 1)

    assert Shard(1, 2).cut(fused, 0, [4, 2], "outputs").flatten().tolist() == [2, 3, 5]
