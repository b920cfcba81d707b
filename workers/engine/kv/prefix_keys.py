"""Names what a full KV block holds: the tokens up to its end, and all else that its content depends on."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

KEY_BYTES = 32
"""A 256-bit BLAKE2b: not even a tenant who chooses his tokens for it finds two prefixes with one key."""

_ROOT = bytes(KEY_BYTES)


def base_fingerprint(folder: Path) -> str:
    """Return a digest of a checkpoint's configuration and of its files' names, sizes and times.

    The weights themselves are not read: keys never leave the process, and the process has one base.
    """
    digest = blake2b(digest_size=KEY_BYTES)
    digest.update((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        if not file.is_file():
            continue  # and hence not read; loading has refused it if it should have been
        stat = file.stat()
        digest.update(f"\0{file.name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def kv_identity(
    base: str, dtype: str, adapters: Iterable[tuple[str | None, float]], salt: str | None
) -> bytes:
    """Return the digest of all that keys and values depend on beside the tokens.

    `adapters` are the (revision, effective scale) pairs that change keys or values, in the order in which
    they are added. Requests with different salts share nothing, so that none can tell from its own speed
    what another has asked.
    """
    members = [(revision, float(scale)) for revision, scale in adapters]
    return blake2b(json.dumps([base, dtype, members, salt]).encode(), digest_size=KEY_BYTES).digest()


class KeyChain:
    """The keys of one sequence's full blocks, each made once: hash(parent's key, identity, tokens).

    The identity is part of every link, not of the first alone: it may become a function of the position.
    """

    __slots__ = ("_block_size", "_keys", "identity")

    def __init__(self, identity: bytes, block_size: int) -> None:
        self.identity = identity
        self._block_size = block_size
        self._keys: list[bytes] = []

    @property
    def known(self) -> list[bytes]:
        """The keys made so far."""
        return self._keys

    def first(self, num_blocks: int, token_ids: Sequence[int]) -> list[bytes]:
        """Return the keys of the first blocks; all their tokens must be there, and never change."""
        keys, size = self._keys, self._block_size
        for index in range(len(keys), num_blocks):
            parent = keys[-1] if keys else _ROOT
            tokens = array("q", token_ids[index * size : (index + 1) * size])
            assert len(tokens) == size, f"block {index} is not full"
            keys.append(blake2b(parent + self.identity + tokens.tobytes(), digest_size=KEY_BYTES).digest())
        return keys[:num_blocks]
