"""Whether a model still computes what it computed before, seen from a sample of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

NUM_PROBES = 16
"""So many numbers of every parameter are compared to see whether it changed."""


class Probes:
    """Where the parameters of a model lie, some numbers of each, and which of its adapters count."""

    def __init__(self, model: nn.Module) -> None:
        parameters = list(model.parameters())
        self._places = list(map(_place, parameters))
        self._numbers = _numbers(parameters)
        self._adapters = _adapters(model)

    def is_current(self, model: nn.Module) -> bool:
        """Whether the weights are those of before: the same memory, not written to since.

        Some optimisers write without counting it, therefore a sample of the numbers is compared, too.
        """
        parameters = list(model.parameters())
        if self._places != list(map(_place, parameters)) or self._adapters != _adapters(model):
            return False
        return all(map(torch.equal, self._numbers, _numbers(parameters)))


def _place(parameter: Tensor) -> tuple[int, int, torch.dtype, torch.device]:
    address = parameter.data_ptr() if _is_plain(parameter) else 0
    version = 0 if parameter.is_inference() else parameter._version
    return address, version, parameter.dtype, parameter.device


def _numbers(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The samples of all parameters as bytes, in one tensor per device and type; equal bytes are equal also if NaN."""
    samples: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in filter(_is_plain, parameters):
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // NUM_PROBES)]
        samples.setdefault((parameter.device, parameter.dtype), []).append(sample)
    return [torch.cat(each).view(torch.uint8) for each in samples.values()]


def _is_plain(parameter: Tensor) -> bool:
    """Whether the parameter has numbers of its own in memory; weights that are loaded when needed have none."""
    return not parameter.is_meta and not is_traceable_wrapper_subclass(parameter)


def _adapters(model: nn.Module) -> list[tuple[tuple[str, ...], bool, dict[str, float]]]:
    """Of every PEFT layer the adapters that count, whether they are switched off, and their scalings."""
    layers: list[Any] = [module for module in model.modules() if "merged_adapters" in vars(module)]
    return [
        (tuple(layer.active_adapters), layer.disable_adapters, dict(getattr(layer, "scaling", {}))) for layer in layers
    ]
