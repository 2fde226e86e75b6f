"""The frozen policy that a KL penalty holds on to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Reference:
    """The policy as it was when this was made: a copy of the trainable parameters (with LoRA the adapter alone)."""

    def __init__(self, model: Any) -> None:
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._start = {name: value.detach().clone() for name, value in self._parameters.items()}

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model is the reference inside, and itself again afterwards, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            current = parameter.detach().clone()
            parameter.copy_(self._start[name])
            self._start[name] = current
