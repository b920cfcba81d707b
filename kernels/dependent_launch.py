"""Programmatic dependent launch: a kernel of a step starts while the one before it drains.

Its programs look up where their data lies, and wait before they touch it (`wait_for_inputs`). The rules:

- Every program waits before it returns, one with nothing to do as well. Otherwise its kernel could be
  complete before the kernel in front of it, and the kernel behind it would read what is not yet written.
- Before it waits, a program reads only what no kernel of a step writes: a step's tables, which are copied to
  the device before its first kernel, the table of slots, and weights. It reads no activations, sums, caches,
  cosines or token ids, and it writes nothing: a kernel in front may still read what would be overwritten.
  Tables that the step itself makes, as it does for experts, are read after the wait by the first kernel that
  needs them (`Pass.made_in_step`); when the ones behind it start, what was in front of it is complete.
- It waits before it tells the next kernel to start. So only two kernels of a stream ever overlap.

Kernels of others in between need not know of it: launched without, they start when all in front of them is
complete, and a waiting program waits for all of them.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

from kernels import cards

VARIABLE = "LORAYARD_PDL"
_LEAST_CAPABILITY = 9
_OFF, _WITHIN_STREAMS, _ACROSS_STREAMS = "0", "1", "2"

SIGNALS_EARLY = tl.constexpr(True)
"""Whether the next kernel may start when all programs of one have begun to work, not when they have ended.
Its programs then wait in what the card has left: those of this kernel are all in their places already."""


def level(environment: dict[str, str]) -> str:
    """Return how much overlaps: 0 nothing, 1 kernels of one stream, 2 also where streams fork and join."""
    wanted = environment.get(VARIABLE) or _WITHIN_STREAMS
    if wanted not in (_OFF, _WITHIN_STREAMS, _ACROSS_STREAMS):
        raise ValueError(
            f"{VARIABLE} is {wanted!r}; give {_OFF} (off), {_WITHIN_STREAMS} (within a stream) or "
            f"{_ACROSS_STREAMS} (also where streams fork and join)"
        )
    return wanted


_LEVEL = level(dict(os.environ))


def dependent_launch(device: torch.device, *, follows_other_stream: bool = False) -> dict[str, bool]:
    """Return what a launch on a device adds to its options: the constant PDL, and Triton's `launch_pdl`.

    `follows_other_stream` is whether another stream's work was waited for since this one's last launch.
    """
    if _LEVEL == _OFF or cards.capability(device) < _LEAST_CAPABILITY:
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": _LEVEL == _ACROSS_STREAMS or not follows_other_stream}


@triton.jit  # type: ignore[untyped-decorator]
def wait_for_inputs(PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Wait until all kernels in front are complete and what they wrote is seen; then let the next start."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        if SIGNALS_EARLY:
            tl.extra.cuda.gdc_launch_dependents()
