"""Tool-calling tasks: schemas, call formats and their parsers, checkers, loaders, and an embedded generator."""

from firesteel.environments.tool_calls.environment import ToolCalls

__all__ = ["ToolCalls"]
