"""BFCL v4 (the package `bfcl-eval`): single-turn tasks, and multi-turn tasks on its eight stateful backends."""

from firesteel.environments.bfcl.environment import Bfcl

__all__ = ["Bfcl"]
