"""Runnable examples: a client in ten lines, the whole pipeline, and the tiny model that they use."""
