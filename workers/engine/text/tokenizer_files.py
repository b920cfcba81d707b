"""Reads a folder's tokenizer: tokenizer.json and what other files add to it, merged as transformers does."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken

from workers.engine.core.errors import CheckpointError
from workers.engine.core.json_files import is_there, read_json
from workers.engine.text.tokenizer_class import (
    DEFAULT_TOKENS,
    MARKS_ALL_NAMED,
    REBUILT,
    missing_sign,
    split_anew,
    splits_anew,
    tokenizer_class,
)

NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_read = partial(read_json, remedy="save the tokenizer again")
_FIELDS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class TokenizerFiles(NamedTuple):
    """A folder's tokenizer, once all its files were read."""

    backend: tokenizers.Tokenizer
    source: str  # what llguidance opens: the path of tokenizer.json, or the text of a merged one
    special: frozenset[str]  # the tokens that `skip_special_tokens` leaves out
    named: Mapping[str, str]  # the special tokens that have names, such as bos_token
    config: Mapping[str, Any]  # tokenizer_config.json


class _Told(NamedTuple):
    """What the files beside tokenizer.json say of tokens."""

    listed: list[tuple[int, AddedToken]]  # with the ids that their files give them
    named: dict[str, AddedToken]
    extra: list[AddedToken]


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Read the tokenizer beside a checkpoint's weights; raises `CheckpointError` if its files disagree."""
    path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    backend, own = _open(path)
    config = _read(config_path) or {}
    _refuse_unhonoured(config, own, config_path)
    class_name = tokenizer_class(config, _read(folder / "config.json") or {}, own)
    try:
        present = {int(token["id"]): _token(token) for token in own.get("added_tokens", ())}
        told = _told(folder, config, DEFAULT_TOKENS.get(class_name, {}), present)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: its special tokens cannot be read: {error!r}; save it again"
        ) from error
    before, ids = _flags(backend), [*present.items(), *told.listed]
    added = _to_add(told, present)
    if class_name in REBUILT:
        _require_listed(present.values(), added, class_name, path)
        if {repr(token) for token in present.values()} - {repr(token) for token in added}:
            backend, present = _open_bytes(json.dumps({**own, "added_tokens": []}).encode(), path), {}
    if class_name in MARKS_ALL_NAMED:
        added += [AddedToken(token.content, special=True) for token in (*told.named.values(), *told.extra)]
    backend.add_tokens(added)
    _require_ids(backend, ids, folder)
    backend.encode_special_tokens = bool(config.get("split_special_tokens"))
    special = frozenset(token.content for token in (*present.values(), *added) if token.special)
    named = {name: token.content for name, token in told.named.items()}
    is_as_filed = _flags(backend) == before
    if splits_anew(class_name):
        is_as_filed = False
        split_anew(backend, config)
    source = str(path) if is_as_filed else backend.to_str()
    return TokenizerFiles(backend, source, special, named, config)


def _flags(backend: tokenizers.Tokenizer) -> dict[int, str]:
    return {token_id: repr(token) for token_id, token in backend.get_added_tokens_decoder().items()}


def _open(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    if not is_there(path):
        raise CheckpointError(f"{path} is missing; save the checkpoint together with its fast tokenizer")
    content = path.read_bytes()
    return _open_bytes(content, path), json.loads(content)


def _open_bytes(content: bytes, path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:
        raise CheckpointError(f"{path} is not a tokenizer: {error}; save the tokenizer again") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _refuse_unhonoured(config: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> None:
    """Refuse what transformers would do to the text and this engine does not."""
    if config.get("clean_up_tokenization_spaces") and own["model"].get("type") != "BPE":
        raise CheckpointError(
            f"{path}: clean_up_tokenization_spaces is true, and this engine rewrites no text that was "
            "generated; set it to false"
        )
    class_name = str(config.get("tokenizer_class"))
    if (sign := missing_sign(class_name, own)) is not None:
        raise CheckpointError(
            f"{path}: tokenizer_class is {class_name}, which splits text in its own way ({sign}), and "
            "tokenizer.json in another; save the tokenizer again, or name the class PreTrainedTokenizerFast"
        )
    if versions := config.get("fast_tokenizer_files"):
        raise CheckpointError(
            f"{path}: fast_tokenizer_files is {versions!r:.80}, of which transformers takes the latest, and "
            "this engine reads tokenizer.json; save the tokenizer again, in one file"
        )


def _told(
    folder: Path,
    config: Mapping[str, Any],
    defaults: Mapping[str, str],
    present: Mapping[int, AddedToken],
) -> _Told:
    """Gather what tokenizer_config.json says, and older files if it has no added_tokens_decoder."""
    settings, decoder = {**defaults, **config}, config.get("added_tokens_decoder")
    if not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens", None)
    listed = [(int(token_id), _token(token)) for token_id, token in (decoder or {}).items()]
    if decoder is None:
        _take_special_tokens_map(settings, _read(folder / "special_tokens_map.json") or {})
    extra = settings["extra_special_tokens"] or []
    if isinstance(extra, Mapping):  # tokens that a model has names of its own for
        settings |= extra
        extra = []
    known = {token.content: token for _, token in listed}
    named = {name: _special(settings[name], known) for name in _names(settings) if settings[name] is not None}
    if decoder is None:
        special = {token.content for token in (*named.values(), *(_special(token, known) for token in extra))}
        older = _read(folder / "added_tokens.json") or {}
        listed += [*present.items(), *_added_tokens(older, special, present)]
    extra = extra or settings.get("additional_special_tokens") or []
    return _Told(listed, named, [_special(token, known) for token in extra])


def _take_special_tokens_map(settings: dict[str, Any], tokens: Mapping[str, Any]) -> None:
    """Take what an older file says: it goes before tokenizer_config.json, but for a model's own names."""
    extra, own = settings["extra_special_tokens"], {name: settings[name] for name in _own_names(settings)}
    settings |= {**tokens, **own}
    more = tokens.get("extra_special_tokens") or extra
    settings["extra_special_tokens"] = (
        [*extra, *more] if isinstance(extra, list) and isinstance(more, list) and more is not extra else more
    )


def _added_tokens(
    tokens: Mapping[str, Any], special: Container[str], present: Mapping[int, AddedToken]
) -> Iterator[tuple[int, AddedToken]]:
    """Return what an older file adds to tokenizer.json's tokens."""
    own = {(token.content, token_id) for token_id, token in present.items()}
    for content, token_id in tokens.items():
        if (content, token_id) not in own:
            is_special = content in special
            yield int(token_id), AddedToken(content, normalized=not is_special, special=is_special)


def _names(settings: Mapping[str, Any]) -> list[str]:
    """Return the keys that name a token: the usual ones first, then a model's own, such as image_token."""
    return [*(name for name in NAMED_TOKENS if name in settings), *_own_names(settings)]


def _own_names(settings: Mapping[str, Any]) -> list[str]:
    return [
        key
        for key, value in settings.items()
        if key.endswith("_token") and key not in NAMED_TOKENS and isinstance(value, str)
    ]


def _token(fields: Mapping[str, Any]) -> AddedToken:
    return AddedToken(fields["content"], **{name: fields[name] for name in _FIELDS if name in fields})


def _special(value: object, known: Mapping[str, AddedToken]) -> AddedToken:
    """Return a token that is special by its name; as text, it is what other files make of it."""
    if isinstance(value, Mapping):
        return known.get(value["content"]) or _token({**value, "special": True})
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no token")
    return known.get(value) or AddedToken(value, special=True)


def _to_add(told: _Told, present: Mapping[int, AddedToken]) -> list[AddedToken]:
    """Return the tokens to tell the backend of, in order; those that have a name are special."""
    tokens = [token for _, token in sorted(told.listed, key=itemgetter(0))]
    names = {token.content for token in told.named.values()}
    for token in tokens:
        token.special = token.special or token.content in names
    known = {token.content for token in (*present.values(), *tokens)}
    # Of one that is told of several times, with different flags, the last one holds.
    return tokens + [token for token in (*told.named.values(), *told.extra) if token.content not in known]


def _require_listed(
    present: Iterable[AddedToken], added: Iterable[AddedToken], class_name: str, path: Path
) -> None:
    """Refuse tokens that a class which makes its tokenizer anew would lose, and split into pieces."""
    if lost := sorted({token.content for token in present} - {token.content for token in added}):
        raise CheckpointError(
            f"{path} has the token {lost[0]!r}, and tokenizer_config.json's added_tokens_decoder has not: "
            f"transformers' {class_name} goes by the latter; save the tokenizer again, or name the class "
            "PreTrainedTokenizerFast there"
        )


def _require_ids(
    backend: tokenizers.Tokenizer, tokens: Iterable[tuple[int, AddedToken]], place: Path
) -> None:
    """Refuse a token whose file gives it another id than it gets: its row of the embedding is another."""
    for token_id, token in tokens:
        if (given := backend.token_to_id(token.content)) != token_id:
            raise CheckpointError(
                f"{place}: the token {token.content!r} has id {token_id} in one file, and {given} by the "
                "others, as transformers takes it; save the tokenizer that the model was trained with again"
            )
