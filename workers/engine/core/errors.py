"""Every way the engine can refuse or fail; each error carries a stable `code` for the job row.

EngineError
├── ConfigError                  the engine's own configuration
├── CheckpointError              the base model's files
├── RequestError
│   ├── InvalidPrompt
│   └── InvalidParams
├── NonFiniteLogits              one request's forward pass produced NaN or infinity
├── NoTokenAllowed               one request's own limits forbid every token
├── RowFailed                    what was made of one request's token raised
├── EngineProcessError
│   ├── EngineStartError
│   └── EngineDied
│       ├── DeviceLost           because its device failed
│       └── EngineHung           because it made no progress, and was ended for that
└── AdapterError
    ├── AdapterNotFound
    ├── AdapterFileError         corrupt, truncated, missing or pickled weights
    ├── AdapterConfigError       missing or unsupported key of adapter_config.json
    ├── AdapterShapeError
    ├── AdapterRankError
    ├── AdapterMatchesNothing
    ├── AdapterTooLarge          does not fit the memory set aside for adapters
    ├── AdapterBaseMismatch
    ├── AdapterDigestMismatch    what is there is not the pinned revision, or not all of it
    ├── AdapterIOError           (retryable)
    ├── AdapterLoadTimeout       (retryable)
    ├── AdapterLoaderDied        (retryable)
    ├── AdapterInUse             (retryable) running sequences still need it
    └── AllSlotsPinned           also a RuntimeError; no slot or no place on the host
"""

from __future__ import annotations

from typing import ClassVar


class EngineError(Exception):
    """Base of everything the engine raises on purpose."""

    code: ClassVar[str] = "engine"
    retryable: ClassVar[bool] = False


class ConfigError(EngineError, ValueError):
    """A configuration value is impossible, alone or for this checkpoint."""

    code = "engine_config"


class CheckpointError(EngineError):
    """The base model's files are missing, corrupt or of an unsupported kind."""

    code = "checkpoint"


class RequestError(EngineError, ValueError):
    """One request cannot be served as asked."""

    code = "request"


class InvalidPrompt(RequestError):
    """The prompt is empty, too long, or not made of this model's tokens."""

    code = "invalid_prompt"


class InvalidParams(RequestError):
    """A sampling parameter is outside what the engine serves."""

    code = "invalid_params"


class NonFiniteLogits(EngineError):
    """A request's logits were NaN or infinite, so no token can be chosen."""

    code = "non_finite_logits"


class NoTokenAllowed(EngineError):
    """What a request forbids (bad words, bias, a grammar) leaves it no token to choose."""

    code = "no_token_allowed"


class RowFailed(EngineError):
    """What was made of one request's token raised, which is a fault of this engine."""

    code = "internal"

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}; please report it")


class EngineProcessError(EngineError):
    """The engine's child process could not be used."""

    code = "engine_process"
    retryable = True


class EngineStartError(EngineProcessError):
    """The child process ended or refused before it was ready; `reason` is the code of why."""

    code = "engine_start"

    def __init__(self, message: str, reason: str = code) -> None:
        super().__init__(message)
        self.reason = reason


class EngineDied(EngineProcessError):
    """The child process is gone; everything it held is lost."""

    code = "engine_died"

    def __init__(self, exitcode: int | None, why: str = "") -> None:
        super().__init__(
            f"engine process ended with exit code {exitcode}{why and f' ({why})'}; "
            "start a new one and resubmit its requests"
        )
        self.exitcode = exitcode


class DeviceLost(EngineDied):
    """The child process is gone because its device failed; `reason` is what torch or the driver said."""

    code = "device_lost"

    def __init__(self, exitcode: int | None, reason: str) -> None:
        super().__init__(exitcode, reason)
        self.reason = reason


class EngineHung(EngineDied):
    """The child process made no progress for longer than its step may take, and was ended."""

    code = "engine_hung"


class AdapterError(EngineError):
    """An adapter cannot be used; the request that asked for it fails, others do not.

    Its message quotes files of strangers: control characters, which a terminal would obey, are escaped.
    """

    code = "adapter"

    def __init__(self, message: str = "") -> None:
        super().__init__("".join(map(_escaped, message)))


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


class AdapterNotFound(AdapterError):
    """There is no adapter at the given path."""

    code = "adapter_not_found"


class AdapterFileError(AdapterError):
    """The adapter's weight files are corrupt, truncated, missing or pickled."""

    code = "adapter_file"


class AdapterConfigError(AdapterError):
    """adapter_config.json lacks a key or asks for something this engine does not honour."""

    code = "adapter_config"


class AdapterShapeError(AdapterError):
    """A LoRA matrix does not fit the base model's module."""

    code = "adapter_shape"


class AdapterRankError(AdapterError):
    """The adapter's rank exceeds `max_lora_rank`."""

    code = "adapter_rank"


class AdapterMatchesNothing(AdapterError):
    """No weight of the adapter belongs to a module of the base model."""

    code = "adapter_matches_nothing"


class AdapterTooLarge(AdapterError):
    """The adapter alone is larger than the memory set aside for adapters."""

    code = "adapter_too_large"


class AdapterBaseMismatch(AdapterError):
    """The adapter was trained on another base model."""

    code = "adapter_base_mismatch"


class AdapterDigestMismatch(AdapterError):
    """The files on disk are not the revision the request pinned, or not all of it."""

    code = "adapter_digest_mismatch"


class AdapterIOError(AdapterError):
    """Reading the adapter failed for a reason that may pass."""

    code = "adapter_io"
    retryable = True


class AdapterLoadTimeout(AdapterError):
    """The adapter was not loaded within `lora_load_timeout_s`."""

    code = "adapter_load_timeout"
    retryable = True


class AdapterLoaderDied(AdapterError):
    """The loader process ended, or was killed for want of memory, while it held the adapter."""

    code = "adapter_loader_died"
    retryable = True


class AdapterInUse(AdapterError):
    """An adapter cannot be dropped while running sequences need it."""

    code = "adapter_in_use"
    retryable = True


class AllSlotsPinned(AdapterError, RuntimeError):
    """Every adapter slot is pinned, so none can be given up."""

    code = "all_slots_pinned"


PROVEN_BY_FILES = frozenset(
    kind.code
    for kind in (
        AdapterFileError,
        AdapterConfigError,
        AdapterShapeError,
        AdapterRankError,
        AdapterMatchesNothing,
        AdapterBaseMismatch,
    )
)
"""Codes of what is wrong with a pinned revision wherever it is read, because its files had the digest.

Any other failure to load one is of the place at which it was tried: its files, its memory, its limits.
"""
