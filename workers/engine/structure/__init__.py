"""Answers that must have a form: what may be asked for, compiled beside the loop, followed token by token."""

from __future__ import annotations

from workers.engine.structure.compiler import GrammarCompiler
from workers.engine.structure.grammar import Grammar
from workers.engine.structure.params import StructuredOutputsParams

__all__ = ["GrammarCompiler", "Grammar", "StructuredOutputsParams"]
