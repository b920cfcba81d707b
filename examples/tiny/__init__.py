"""A tiny Llama base and LoRA adapters whose right answers can be computed."""

from examples.tiny.tasks import TASKS, Split, Task, prompt, sample_words

__all__ = ["TASKS", "Split", "Task", "prompt", "sample_words"]
