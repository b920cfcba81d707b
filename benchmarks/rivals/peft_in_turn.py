"""PEFT on the workload with one adapter after another, each with its own requests as a batch."""

from __future__ import annotations

from collections import defaultdict

from benchmarks.rivals.protocol import serve
from benchmarks.rivals.transformers_peft import TransformersPeft


class PeftInTurn(TransformersPeft):
    """What one does without a mixed batch: switch, run that adapter's requests, switch again."""

    def generate(self, prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
        """Serve the prompts grouped by adapter."""
        members: dict[int | None, list[int]] = defaultdict(list)
        for request in range(len(prompts)):
            members[self._workload.adapter_of(request)].append(request)
        answers: dict[int, list[int]] = {}
        for adapter, requests in members.items():
            if adapter is not None:
                self._model.set_adapter(self._names[adapter])
            batch = [prompts[request] for request in requests]
            answers |= zip(requests, self._run(batch, num_new_tokens, {}), strict=True)
        return [answers[request] for request in range(len(prompts))]


if __name__ == "__main__":
    serve(PeftInTurn)
