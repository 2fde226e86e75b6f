"""Settings of what is done about groups without a gradient, and about trainings that collapse."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from firesteel.config_base import Section


class RescueConfig(Section):
    """What becomes of a group in which every leaf failed, so that it has no gradient."""

    name: str = "none"
    """A name from `RESCUES` or "package.module:factory"."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the rescue."""


class StabilityConfig(Section):
    """When a training counts as collapsed, and what follows."""

    collapse_below: float = Field(default=0.5, gt=0, lt=1)
    """Collapsed: validation success below this share of its best ..."""
    patience: int = Field(default=3, ge=1)
    """... in so many evaluations in a row."""
    on_collapse: Literal["report", "stop", "roll_back"] = "report"
    """"report" says when and why; "stop" ends the training; "roll_back" returns to the best weights on validation."""
    roll_back_lr: float = Field(default=0.5, gt=0, le=1)
    """The rate is multiplied by it at every roll-back: at the same rate it would collapse again."""
    log_kl: bool = False
    """Log the KL to the start of the run as `losses/kl` also where `loss.kl_coef` is 0 (one more forward pass)."""
