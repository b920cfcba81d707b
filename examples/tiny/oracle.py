"""What transformers and PEFT answer: the yardstick for the shipped weights and for every engine."""

from __future__ import annotations

import argparse
import warnings
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlamaForCausalLM

from examples.tiny.recipe import ADAPTERS_DIR, BASE_DIR
from examples.tiny.tasks import TASKS, prompt, sample_words
from examples.tiny.tokenizer import EOS_ID, PAD_ID, build_tokenizer

_MAX_NEW_TOKENS = 20  # the longest answer is 16 letters and the end


class Answer(NamedTuple):
    """One greedy completion, and the smallest lead of a chosen token over the next best."""

    text: str
    token_ids: list[int]
    min_logit_gap: float


class Oracle:
    """The base and all shipped adapters, loaded once."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._model = _load(dtype)
        self._tokenizer = build_tokenizer()
        self._tokenizer.enable_padding(direction="left", pad_id=PAD_ID, pad_token="<pad>")  # noqa: S106

    def answers(self, prompts: list[str], adapter: str | None) -> list[Answer]:
        """Complete `prompts` greedily in one batch, with the named adapter or with the base alone."""
        if adapter is None:
            with self._model.disable_adapter():
                return self._generate(prompts)
        self._model.set_adapter(adapter)
        return self._generate(prompts)

    @torch.inference_mode()
    def _generate(self, prompts: list[str]) -> list[Answer]:
        encoded = self._tokenizer.encode_batch(prompts)
        token_ids = torch.tensor([encoding.ids for encoding in encoded])
        result = self._model.generate(
            input_ids=token_ids,
            attention_mask=torch.tensor([encoding.attention_mask for encoding in encoded]),
            max_new_tokens=_MAX_NEW_TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        chosen = result.sequences[:, token_ids.shape[1] :]
        gaps = logit_gaps(torch.stack(result.logits, dim=1))
        return [self._answer(row.tolist(), row_gaps) for row, row_gaps in zip(chosen, gaps, strict=True)]

    def _answer(self, token_ids: list[int], gaps: Tensor) -> Answer:
        length = token_ids.index(EOS_ID) + 1 if EOS_ID in token_ids else len(token_ids)
        text = self._tokenizer.decode(token_ids[:length])
        return Answer(text, token_ids[:length], gaps[:length].min().item())


def _load(dtype: torch.dtype) -> PeftModel:
    base = LlamaForCausalLM.from_pretrained(BASE_DIR, dtype=dtype)
    first, *others = sorted(TASKS)
    with warnings.catch_warnings():
        # PEFT 0.21 asks for a property that transformers 5 has renamed; the value is the same.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model = PeftModel.from_pretrained(
            base, ADAPTERS_DIR / first, adapter_name=first, autocast_adapter_dtype=False
        )
        for name in others:
            model.load_adapter(str(ADAPTERS_DIR / name), adapter_name=name, autocast_adapter_dtype=False)
    return model.to(dtype).eval()


def logit_gaps(
    logits: Tensor,  # [batch_size, num_new_tokens, vocab_size]
) -> Tensor:  # [batch_size, num_new_tokens]
    """Return the lead of the best token over the second, in logits."""
    best, second = logits.float().topk(2, dim=-1).values.unbind(-1)
    return best - second


def main() -> None:
    """Print the table that README.md shows."""
    parser = argparse.ArgumentParser(description="Measure the shipped adapters on held-out words.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    oracle = Oracle(getattr(torch, arguments.dtype))
    for task in TASKS.values():
        words = sample_words(task.name, "held_out", arguments.count, arguments.seed)
        asked = [prompt(word) for word in words]
        expected = [task.answer(word) for word in words]
        tuned, bare = oracle.answers(asked, task.name), oracle.answers(asked, None)
        right = sum(answer.text == want for answer, want in zip(tuned, expected, strict=True))
        by_base = sum(answer.text == want for answer, want in zip(bare, expected, strict=True))
        gaps = sorted(answer.min_logit_gap for answer in tuned + bare)
        print(
            f"{task.name:<11} right={right}/{len(words)} base_right={by_base} min_gap={gaps[0]:.2f} "
            f"gap_p1={gaps[len(gaps) // 100]:.2f} {words[0]} -> {tuned[0].text} (base: {bare[0].text})"
        )


if __name__ == "__main__":
    main()
