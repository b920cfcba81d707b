"""Adapters from allowed repositories of the Hugging Face hub; needs huggingface_hub, which is optional."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from pathlib import Path

from workers.engine.core.errors import AdapterIOError, ConfigError

_FILES = ["adapter_config.json", "adapter_model*.safetensors"]


class HubResolver:
    """A place for `ResolverChain`; the hub's own cache keeps the files.

    It has been tried against a stand-in for `snapshot_download` only, not against the hub.
    """

    def __init__(
        self,
        allowed: Collection[str],
        *,
        revision: str | None = None,
        download: Callable[..., str] | None = None,
    ) -> None:
        """`allowed` are repositories ("owner/name"); ConfigError without huggingface_hub."""
        self._allowed = frozenset(allowed)
        self._revision = revision
        self._download = download or _snapshot_download()

    def find(self, name: str) -> Path | None:
        """Download an allowed repository's adapter files, unless they are here, and return their folder."""
        if name not in self._allowed:
            return None
        try:
            return Path(self._download(name, revision=self._revision, allow_patterns=_FILES))
        except (OSError, ValueError) as error:  # the hub's own errors are of these kinds
            raise AdapterIOError(
                f"adapter {name!r}: the hub did not give its files ({error}); check the name and the network"
            ) from error

    def __str__(self) -> str:
        return f"the hub's {len(self._allowed)} allowed repositories"


def _snapshot_download() -> Callable[..., str]:
    try:
        found: Callable[..., str] = importlib.import_module("huggingface_hub").snapshot_download
    except ImportError as error:
        raise ConfigError("the hub's adapters need it: pip install huggingface_hub") from error
    return found
