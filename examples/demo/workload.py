"""The demo's jobs, each with the one right answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from examples.tiny.tasks import TASKS, prompt, sample_words
from lorayard import JobSpec

ADAPTERS_DIR = Path(__file__).parents[1] / "tiny" / "adapters"
MODEL_DIR = ADAPTERS_DIR.with_name("base")
TENANTS = ("ada", "grace", "linus")
JOBS_PER_ADAPTER = 40
MAX_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Question:
    """A job and what its output must be."""

    spec: JobSpec
    answer: str


def questions(callback_url: str) -> list[Question]:
    """Ask the base and every shipped adapter about held-out words, in turn, so that adapters always mix.

    The bare base echoes its input.
    """
    asked: list[tuple[str | None, str, str]] = []
    words = {name: sample_words(name, "held_out", JOBS_PER_ADAPTER, seed=7) for name in TASKS}
    for index in range(JOBS_PER_ADAPTER):
        for name, task in TASKS.items():
            asked.append((name, words[name][index], task.answer(words[name][index])))
        asked.append((None, words["upper"][index], words["upper"][index]))
    return [
        Question(_spec(adapter, word, TENANTS[number % len(TENANTS)], callback_url), answer)
        for number, (adapter, word, answer) in enumerate(asked)
    ]


def _spec(adapter: str | None, word: str, tenant: str, callback_url: str) -> JobSpec:
    return JobSpec(
        prompt=prompt(word),
        adapter=adapter,
        max_tokens=MAX_TOKENS,
        tenant=tenant,
        callback_url=callback_url,
    )
