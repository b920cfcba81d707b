"""Text to tokens and back, by the checkpoint's own tokenizer files."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from functools import partial
from pathlib import Path

import tokenizers

from workers.engine.core.errors import InvalidPrompt
from workers.engine.text.chat_template import ChatTemplate, Message, load_chat_template
from workers.engine.text.detokenizer import IncrementalDetokenizer, SpelledStops, StopChecker
from workers.engine.text.tokenizer_files import read_tokenizer


class Tokenizer:
    """A checkpoint's tokenizer with, if it has one, its chat template."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        chat_template: ChatTemplate | None,
        *,
        special: Container[str] | None = None,
        source: str = "",
    ) -> None:
        """`special` are the tokens that decoding can leave out; None: those that are marked as special."""
        self._backend = backend
        self._chat_template = chat_template
        self._source = source
        self._special_ids = {
            token_id: token.content
            for token_id, token in backend.get_added_tokens_decoder().items()
            if (token.special if special is None else token.content in special)
        }
        self._byte_ids = _byte_ids(backend)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Load the tokenizer beside the checkpoint's weights; raises `CheckpointError`."""
        files = read_tokenizer(folder)
        template = load_chat_template(folder, files.config, files.named)
        return cls(files.backend, template, special=files.special, source=files.source)

    @property
    def source(self) -> str:
        """The tokenizer for libraries that open one: the path of its file, or the text of a merged one."""
        return self._source

    @property
    def num_ids(self) -> int:
        """One more than the largest id of a token; a model may have more logits, or fewer."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt, special tokens added as the checkpoint asks."""
        return self._encode(text, add_special_tokens=True)

    def encode_messages(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """Return the rendered prompt and its tokens; the template itself places the special tokens."""
        if self._chat_template is None:
            raise InvalidPrompt("the checkpoint has no chat template; send a prompt instead of messages")
        text = self._chat_template.render(messages)
        return text, self._encode(text, add_special_tokens=False)

    def encode_bare(self, text: str) -> list[int]:
        """Return the tokens of a piece of text, without any special tokens."""
        return self._encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`."""
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def stop_checker(
        self, stops: Sequence[str], *, keeps_stop: bool = False, skip_special_tokens: bool = True
    ) -> StopChecker:
        """Return a watcher for `stops` in a generated text."""
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        silent = self._special_ids if skip_special_tokens else {}
        spelled = [stop for stop in stops if any(token in stop for token in silent.values())]
        if not spelled:
            return StopChecker(stops, detokenizer, keeps_stop=keeps_stop)
        return StopChecker(
            [stop for stop in stops if stop not in spelled],
            detokenizer,
            keeps_stop=keeps_stop,
            spelled=SpelledStops(spelled, self.detokenizer(skip_special_tokens=False), silent),
        )

    def detokenizer(self, *, skip_special_tokens: bool = True) -> IncrementalDetokenizer:
        """Return what `decode` would give, piece by piece."""
        return IncrementalDetokenizer(
            partial(self.decode, skip_special_tokens=skip_special_tokens),
            is_silent=self._is_left_out if skip_special_tokens else self._is_unknown,
            byte_ids=self._byte_ids,
        )

    def _is_left_out(self, token_id: int) -> bool:
        return token_id in self._special_ids or self._is_unknown(token_id)

    def _is_unknown(self, token_id: int) -> bool:
        return self._backend.id_to_token(token_id) is None  # a model may have more ids than its tokenizer

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except (TypeError, ValueError) as error:  # lone surrogates are ValueErrors
            raise InvalidPrompt(
                f"the prompt cannot be tokenised: {error}; send valid Unicode text"
            ) from error


def _byte_ids(backend: tokenizers.Tokenizer) -> Container[int]:
    """Return the tokens whose text is only known once the run of them has ended."""
    decoder = "" if backend.decoder is None else backend.decoder.__getstate__().decode()
    if '"CTC"' in decoder or re.search(r'"stop":[1-9]', decoder):  # these take away from the very end
        return range(backend.get_vocab_size(with_added_tokens=True))
    if '"ByteFallback"' not in decoder:
        return frozenset()
    found = (backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(token_id for token_id in found if token_id is not None)
