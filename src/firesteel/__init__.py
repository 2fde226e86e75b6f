"""Train tool-using language agents by reinforcement learning that explores on purpose.

The public names are loaded when they are first used: `import firesteel` alone imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firesteel.config import Config
    from firesteel.environments.base import Environment
    from firesteel.environments.check import check_environment
    from firesteel.errors import FiresteelError
    from firesteel.evaluate import evaluate
    from firesteel.generators.mock import MockGenerator
    from firesteel.generators.torch import TorchGenerator
    from firesteel.policy import grow_trees
    from firesteel.train import train
    from firesteel.tree import Node, Tree
    from firesteel.types import (
        Completion,
        ExpertStep,
        Generator,
        Observation,
        Request,
        SamplingParams,
        StepResult,
        Task,
    )

__version__ = "0.1.0"

_EXPORTS = {
    "Completion": "firesteel.types",
    "Config": "firesteel.config",
    "Environment": "firesteel.environments.base",
    "ExpertStep": "firesteel.types",
    "FiresteelError": "firesteel.errors",
    "Generator": "firesteel.types",
    "MockGenerator": "firesteel.generators.mock",
    "Node": "firesteel.tree",
    "Observation": "firesteel.types",
    "Request": "firesteel.types",
    "SamplingParams": "firesteel.types",
    "StepResult": "firesteel.types",
    "Task": "firesteel.types",
    "TorchGenerator": "firesteel.generators.torch",
    "Tree": "firesteel.tree",
    "check_environment": "firesteel.environments.check",
    "evaluate": "firesteel.evaluate",
    "grow_trees": "firesteel.policy",
    "train": "firesteel.train",
}

__all__ = [
    "Completion",
    "Config",
    "Environment",
    "ExpertStep",
    "FiresteelError",
    "Generator",
    "MockGenerator",
    "Node",
    "Observation",
    "Request",
    "SamplingParams",
    "StepResult",
    "Task",
    "TorchGenerator",
    "Tree",
    "__version__",
    "check_environment",
    "evaluate",
    "grow_trees",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports the module of a public name on first use and keeps the object."""
    module_name = _EXPORTS.get(name)
    if module_name is None:
        raise AttributeError(f"module 'firesteel' has no attribute '{name}'; its public names are in firesteel.__all__")
    value = getattr(importlib.import_module(module_name), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `firesteel.train` and `firesteel.evaluate` the functions.

    Importing a submodule binds it as an attribute of its package, which would put the module `firesteel.train` in
    the place of the function of the same name.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name in _EXPORTS and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
