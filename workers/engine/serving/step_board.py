"""Tells the parent what the engine is doing, through memory that outlives the engine's process.

A message for each step would cost throughput, and one that comes after the step is missing when it matters.
So the child writes a few words before each step; the parent reads them when it likes, and after its death.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

_VERSION: Final = struct.Struct("=Q")  # odd while the rest is written
_WORDS: Final = struct.Struct("=QQQIIIId")  # the numbers of `Progress` in their order, and the names' bytes
_NAMES_AT: Final = _VERSION.size + _WORDS.size
_BYTES_PER_REQUEST: Final = 64
"""What a worker calls an attempt has 47 bytes at most."""

_UNNAMED: Final = 0xFFFFFFFF
_READ_TRIES: Final = 100


class Phase(IntEnum):
    """What the engine's process is at."""

    LOADING = 0
    COMPILING = 1
    STEPPING = 2
    TAKING = 3  # in a request
    WAITING = 4  # for commands, or for adapters


@dataclass(frozen=True, slots=True)
class Progress:
    """The engine's last word; `num_moves` grows with each thing that it begins or ends."""

    phase: Phase = Phase.LOADING
    num_moves: int = 0
    num_taken: int = 0  # commands
    num_steps: int = 0  # done
    num_tokens: int = 0  # of the steps in flight, as all that follows
    predicted_s: float = 0.0
    num_requests: int = 0
    request_ids: tuple[str, ...] | None = ()
    """Whose rows are computed, or who is taken in; None if they cannot be told: too many, or torn."""

    def __str__(self) -> str:
        if self.phase is not Phase.STEPPING:
            return self.phase.name.lower()
        return (
            f"step {self.num_steps + 1} of {self.num_requests} requests and {self.num_tokens} tokens, "
            f"predicted to take {self.predicted_s:.3f} s"
        )


class StepBoard:
    """Memory with one writer, the child; whoever reads it sees all of a word or knows that it is torn."""

    def __init__(self, file: int = -1, size: int = 1 << 14) -> None:
        """Map the memory of `file`, which stays the caller's to close; -1: memory that nobody else reads."""
        self._memory = mmap.mmap(file, size)
        self._room = size - _NAMES_AT
        self._version = self._num_moves = self._num_taken = self._num_steps = 0
        self._phase = int(Phase.LOADING)
        self._num_tokens = self._names_length = 0
        self._predicted_s = 0.0
        self._request_ids: tuple[str, ...] = ()

    @staticmethod
    def make_file(max_num_seqs: int) -> tuple[int, int]:
        """Make the memory for two steps of so many requests; returns its file and its size in bytes."""
        size = _NAMES_AT + _BYTES_PER_REQUEST * (2 * max_num_seqs + 1)
        file = os.memfd_create("lorayard-steps", os.MFD_CLOEXEC)
        os.ftruncate(file, size)
        return file, size

    def close(self) -> None:
        """Give the memory up."""
        self._memory.close()

    def enter(
        self,
        phase: Phase,
        request_ids: tuple[str, ...] = (),
        *,
        num_tokens: int = 0,
        predicted_s: float = 0.0,
    ) -> None:
        """Say what begins."""
        self._phase = int(phase)
        self._num_tokens = num_tokens
        self._predicted_s = predicted_s
        names = None
        if request_ids != self._request_ids:
            self._request_ids = request_ids
            names = "\n".join(request_ids).encode()
            self._names_length = len(names) if len(names) <= self._room else _UNNAMED
        self._write(names)

    def take(self, request_id: str | None) -> None:
        """Say that a command was received, and is about to be obeyed; `request_id` if it adds a request."""
        self._num_taken += 1
        if request_id is None:
            self._write()
        else:
            self.enter(Phase.TAKING, (request_id,))

    def settle(self) -> None:
        """Say that a step is done; its requests stay named, for what is made of its results is theirs too."""
        self._num_steps += 1
        self._write()

    def tick(self) -> None:
        """Say that the engine is there, though nothing has changed."""
        self._write()

    def _write(self, names: bytes | None = None) -> None:
        self._num_moves += 1
        self._turn_version()
        _WORDS.pack_into(
            self._memory,
            _VERSION.size,
            self._num_moves,
            self._num_taken,
            self._num_steps,
            self._phase,
            self._num_tokens,
            len(self._request_ids),
            self._names_length,
            self._predicted_s,
        )
        if names and self._names_length != _UNNAMED:
            self._memory[_NAMES_AT : _NAMES_AT + len(names)] = names
        self._turn_version()

    def _turn_version(self) -> None:
        self._version += 1
        _VERSION.pack_into(self._memory, 0, self._version)

    def read(self) -> Progress:
        """Return the last word; of one that was being written as the child died or was stopped, no names."""
        before = 0
        for _ in range(_READ_TRIES):
            (before,) = _VERSION.unpack_from(self._memory, 0)
            word = self._parse()
            (after,) = _VERSION.unpack_from(self._memory, 0)
            if word is not None and before == after and before % 2 == 0:
                return word
        return Progress(Phase.STEPPING, num_moves=before, num_steps=1, request_ids=None)

    def _parse(self) -> Progress | None:
        moves, taken, steps, phase, tokens, requests, length, predicted_s = _WORDS.unpack_from(
            self._memory, _VERSION.size
        )
        request_ids: tuple[str, ...] | None = None
        if length != _UNNAMED:
            names = self._memory[_NAMES_AT : _NAMES_AT + length]
            try:
                request_ids = tuple(names.decode().split("\n")) if names else ()
            except UnicodeDecodeError:
                return None  # torn
        return Progress(Phase(phase), moves, taken, steps, tokens, predicted_s, requests, request_ids)
