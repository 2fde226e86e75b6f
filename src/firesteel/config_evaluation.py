"""Settings of how success is measured."""

from __future__ import annotations

from pydantic import Field

from firesteel.config_base import Section


class EvaluationConfig(Section):
    """How success is measured: during training (validation) and by `firesteel evaluate`."""

    every: int = Field(default=0, ge=0)
    """Evaluate every so many steps; 0: never. The best step on validation is kept as `checkpoints/best`."""
    every_tokens: int = Field(default=0, ge=0)
    """Evaluate whenever so many more tokens were generated, probes among them; 0: never. At most once a step: after one
    that generates a multiple of it, the next steps are evaluated, too. Runs whose steps cost differently are looked at
    equally often at equal tokens. With `every` above 0, both count."""
    split: str = "validation"
    """Split to evaluate on."""
    num_tasks: int | None = 100
    """How many tasks; None: all."""
    samples: int = Field(default=1, ge=1)
    """Episodes a task; above 1 gives pass@k for k up to it."""
    temperature: float = Field(default=0.4, ge=0)
    """Sampling temperature (SPARK's validation: 0.4)."""
    vote: bool = False
    """Test-time branching: at an explore step, sample B next steps and execute the most frequent action."""
    seed: int = 0
    """Seed of the samples; the same for every model that is compared."""
    test_split: str | None = None
    """Split that is played once before and once after training (best step on validation); None: no such report."""
    test_tasks: int | None = 200
    """How many test tasks; None: all."""

    @property
    def looks(self) -> bool:
        """Whether validation tasks are played during training."""
        return self.every > 0 or self.every_tokens > 0
