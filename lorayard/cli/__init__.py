"""The `lorayard` command: one file per verb, and nothing heavy imported before its verb runs."""

from lorayard.cli.command import app, main

__all__ = ["app", "main"]
