"""Runs `up` on real servers and the small processes: run by tests as a script."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from lorayard.local import EVERYTHING, StackConfig, StackSettings, up


class SmallSettings(StackSettings):
    """Settings of a stack that runs the small processes (environment: first argument) and no Flower."""

    def to_config(self) -> StackConfig:
        small_env = json.loads(sys.argv[1])
        return replace(super().to_config(), durable=False, parts=EVERYTHING - {"flower"}, extra_env=small_env)


if __name__ == "__main__":
    sys.exit(up(SmallSettings()))
