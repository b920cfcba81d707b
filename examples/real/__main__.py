"""`python -m examples.real`: make the checkpoint, train both adapters, serve them; `--check` compares."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.real.check import check
from examples.real.checkpoint import PackageMissing
from examples.real.folders import BASE, Folders
from examples.real.serving import serve
from examples.real.tasks import TASKS


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing, then serve or compare; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    folders = Folders(arguments.folder)
    try:
        folders.make_missing(arguments.again)
    except PackageMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.check:
        return check(folders, arguments.threads)
    # A plain `kill` takes the stack down in order, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return serve(folders)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.real",
        description="SmolLM2-135M-Instruct with two adapters: made, trained and served in bfloat16.",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare 80 chats in float32 with transformers and PEFT instead"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(".lorayard/real"),
        help="where checkpoint and adapters are kept (default: %(default)s, about 300 MB)",
    )
    parser.add_argument(
        "--again", nargs="+", default=[], choices=[BASE, *TASKS], metavar="STAGE", help="make these anew"
    )
    parser.add_argument(
        "--threads", type=_positive, help="torch threads of training and --check (default: torch's own)"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads: give 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
