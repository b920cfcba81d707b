"""Distinct tokens and their counts agree with a recount, however long the text."""

from __future__ import annotations

from collections import Counter

import torch

from workers.engine.sampling.seen_tokens import SeenTokens


def test_counts_are_those_of_a_recount() -> None:
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, 40, (60,), generator=generator).tolist()
    output = torch.randint(20, 400, (900,), generator=generator).tolist()
    seen = SeenTokens(prompt)

    for token_id in output:
        seen.append(token_id)

    counts = dict(zip(seen.token_ids.tolist(), seen.counts.tolist(), strict=True))
    assert len(seen) == len(counts) == len(set(prompt) | set(output))
    assert {token_id: count for token_id, count in counts.items() if count} == Counter(output)
    assert set(prompt) <= set(counts)


def test_nothing_seen_is_empty() -> None:
    assert SeenTokens([]).token_ids.tolist() == []
