"""Serving without a loop of one's own: all prompts go in, all outputs come back in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from workers.engine.core.errors import InvalidPrompt
from workers.engine.core.lora_request import AnyLoRA
from workers.engine.core.outputs import RequestOutput
from workers.engine.core.sampling_params import SamplingParams
from workers.engine.serving.input_processor import Prompt, as_prompts, one_each
from workers.engine.serving.progress import ProgressBar, UseTqdm
from workers.engine.serving.request_state import RequestState

Conversation = list[dict[str, Any]]
"""Chat messages, each a role with its content."""


class OfflineServing(ABC):
    """The part of the engine's face for those who have all their prompts at hand."""

    _undelivered: list[RequestOutput]

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: AnyLoRA | Sequence[AnyLoRA | None] | None = None,
        *,
        use_tqdm: UseTqdm = True,
    ) -> list[RequestOutput]:
        """Serve these prompts to their end and return their outputs in order.

        A prompt is text, token ids or chat messages; `params` and `lora_request` are one for all or one each.
        Several adapters upon one prompt are a `LoRAMix`; a list is always one entry per prompt.
        A progress bar is shown if stderr is a terminal, unless `use_tqdm` is False; a callable makes
        another bar. What interrupts this call ends its requests.
        """
        all_prompts = as_prompts(prompts)
        all_params = one_each("params", params or SamplingParams(), len(all_prompts))
        all_loras = one_each("lora_request", lora_request, len(all_prompts))
        asked = zip(all_prompts, all_params, all_loras, strict=True)
        # All are checked before any runs, so that a bad one leaves nothing behind.
        requests = [self._new_request(self._new_id(), *request) for request in asked]
        with ProgressBar(use_tqdm, len(requests)) as progress:
            for request in requests:
                self._enqueue(request)
            return self._run_to_end([request.request_id for request in requests], progress)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: AnyLoRA | Sequence[AnyLoRA | None] | None = None,
        *,
        use_tqdm: UseTqdm = True,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several, through the chat template; see `generate`."""
        conversations = as_prompts(messages)
        if not conversations or not all(map(_is_conversation, conversations)):
            raise InvalidPrompt(
                f"messages is {messages!r:.80}; give a list of dicts with role and content, or a list of such"
            )
        return self.generate(conversations, params, lora_request, use_tqdm=use_tqdm)

    @abstractmethod
    def step(self) -> list[RequestOutput]:
        """Run one step and return what came of it."""

    @abstractmethod
    def abort_request(self, request_id: str) -> RequestOutput | None:
        """End a request now; None if it is not held."""

    @abstractmethod
    def _new_id(self) -> str: ...

    @abstractmethod
    def _new_request(
        self, request_id: str, prompt: Prompt, params: SamplingParams, lora: AnyLoRA | None
    ) -> RequestState: ...

    @abstractmethod
    def _enqueue(self, request: RequestState) -> None: ...

    @abstractmethod
    def _settle_rest(self) -> list[RequestOutput]: ...

    def _run_to_end(self, request_ids: list[str], progress: ProgressBar) -> list[RequestOutput]:
        outputs: dict[str, RequestOutput] = {}
        others: list[RequestOutput] = []
        wanted = set(request_ids)
        try:
            while len(outputs) < len(wanted):
                for output in self.step():
                    if output.request_id not in wanted:
                        others.append(output)
                    elif output.finished:
                        outputs[output.request_id] = output
                        progress.count(output)
            others += self._settle_rest()
        except BaseException:
            # Ctrl-C, mostly: what nobody will collect must not run on beside the next call.
            for request_id in request_ids:
                self.abort_request(request_id)
            raise
        finally:
            self._undelivered += others
        return [outputs[request_id] for request_id in request_ids]


def _is_conversation(prompt: Prompt) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(one, dict) for one in prompt)
