"""Training sees whole sequences, and is taught the answers alone."""

from __future__ import annotations

import random
from itertools import islice

from examples.tiny.batches import Encoder, adapter_examples, base_examples, batches
from examples.tiny.tasks import TASKS, is_held_out
from examples.tiny.tokenizer import BOS_ID, EOS_ID, PAD_ID, build_tokenizer


def test_a_sequence_is_the_opening_the_prompt_the_answer_and_the_end() -> None:
    example = Encoder().example(BOS_ID, "abc", "ABC")

    assert example.token_ids == [*build_tokenizer().encode("abc>ABC").ids, EOS_ID]
    assert example.num_prompt_tokens == len(build_tokenizer().encode("abc>").ids)


def test_labels_cover_the_answer_and_its_end_and_nothing_else() -> None:
    rng = random.Random(1)
    examples = list(islice(base_examples(rng), 64))

    batch = next(batches(iter(examples), 8, rng))

    for token_ids, labels in zip(batch.token_ids, batch.labels, strict=True):
        taught = labels != -100
        assert (labels[taught] == token_ids[taught]).all()
        assert labels[taught][-1] == EOS_ID
        length = int((token_ids != PAD_ID).sum())
        assert (token_ids[: length - int(taught.sum())].tolist(), token_ids[:length].tolist()) in [
            (example.token_ids[: example.num_prompt_tokens], example.token_ids) for example in examples
        ]


def test_the_base_learns_every_task_behind_its_tag_and_the_echo_behind_bos() -> None:
    tokenizer, encoder = build_tokenizer(), Encoder()
    names = {tag_id: name for name, tag_id in encoder.tag_ids.items()}
    openings = set()

    for example in islice(base_examples(random.Random(1)), 500):
        opening, *rest = example.token_ids
        word, answer = tokenizer.decode(rest).split(">")
        assert answer == (word if opening == BOS_ID else TASKS[names[opening]].answer(word))
        assert not is_held_out(word)
        openings.add(opening)

    assert openings == {BOS_ID, *names}


def test_an_adapter_learns_its_task_on_prompts_without_a_tag() -> None:
    tokenizer = build_tokenizer()

    for example in islice(adapter_examples("reverse", random.Random(1)), 100):
        word, answer = tokenizer.decode(example.token_ids[1:]).split(">")
        assert example.token_ids[0] == BOS_ID
        assert answer == word[::-1] != word
        assert not is_held_out(word)
