"""Answers that must follow a grammar: compiled beside the loop, followed token by token."""

from __future__ import annotations

from workers.engine.core.structured_outputs import StructuredOutputsParams
from workers.engine.structured_output.compiler import GrammarCompiler
from workers.engine.structured_output.grammar import Grammar

__all__ = ["GrammarCompiler", "Grammar", "StructuredOutputsParams"]
