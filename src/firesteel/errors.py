"""Every error that firesteel raises on purpose, in one tree with one root.

Each class also inherits the standard error that it stands for, so `except ValueError` keeps working.
A message names the object, what was wanted, what came, and what to do.
"""


class FiresteelError(Exception):
    """Root of all errors raised by firesteel."""


class ConfigError(FiresteelError, ValueError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


class EnvironmentFailed(FiresteelError, RuntimeError):
    """An environment died, hung or broke its contract; the episode is recorded as failed."""


class StepTimeout(EnvironmentFailed, TimeoutError):
    """An environment call took longer than its limit."""


class ForkDiverged(EnvironmentFailed):
    """A replayed fork produced another observation than its parent did."""


class CannotFork(FiresteelError, TypeError):
    """The environment has no way to fork, and a branching recipe asked for one."""


class ToolFailed(FiresteelError, RuntimeError):
    """A tool cannot answer a query; the message is what the agent is shown."""


class TaskError(FiresteelError, ValueError):
    """A task or split does not exist or cannot be loaded."""


class ModelError(FiresteelError, ValueError):
    """A model or tokenizer cannot be loaded or cannot be used for what was asked."""


class ContextOverflow(FiresteelError, ValueError):
    """A prompt and its response do not fit into the model's context."""


class TreeError(FiresteelError, ValueError):
    """A tree breaks its own contract (token counts, parents, leaves)."""


class StoreError(FiresteelError, ValueError):
    """A stored file is missing, damaged, or of an unknown version."""


class CheckpointError(StoreError):
    """A checkpoint is missing, damaged, or belongs to another configuration."""


class MissingDependency(FiresteelError, ImportError):
    """An optional package or program is not installed; the message says how to get it."""


class ServerFailed(FiresteelError, ConnectionError):
    """A model server refused a request, or kept failing until the retries were spent."""


class AnswerInvalid(FiresteelError, ValueError):
    """A model server answered, and no answer of all attempts had the form that was asked for."""


class BudgetSpent(FiresteelError, RuntimeError):
    """A cap on tokens is reached; nothing further is sent."""
